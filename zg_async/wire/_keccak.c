/* Keccak-256 over many blocks of one size, several at a time in vector lanes, without the GIL.
 *
 * An optional speed-up of keccak_batch.py, which does the same without it. Which instructions are used is decided
 * when the module is loaded: AVX-512, AVX2 or SSE2 on x86-64, NEON on arm64, else one block at a time.
 */

#define PY_SSIZE_T_CLEAN
#ifndef Py_GIL_DISABLED
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include <stdint.h>
#include <string.h>

#define RATE_WORDS 17
#define DIGEST 32
#define RELEASE_FROM 65536 /* bytes of input for which letting the GIL go is worth it */

#if defined(__x86_64__) || defined(_M_X64)
#define HAVE_X86 1
#include <immintrin.h>
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#define ATTRIBUTE(set)
#else
#define ATTRIBUTE(set) __attribute__((target(set)))
#endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#define HAVE_NEON 1
#include <arm_neon.h>
#endif

static const uint64_t ROUND_CONSTANTS[24] = {
    0x0000000000000001ULL, 0x0000000000008082ULL, 0x800000000000808AULL, 0x8000000080008000ULL, 0x000000000000808BULL,
    0x0000000080000001ULL, 0x8000000080008081ULL, 0x8000000000008009ULL, 0x000000000000008AULL, 0x0000000000000088ULL,
    0x0000000080008009ULL, 0x000000008000000AULL, 0x000000008000808BULL, 0x800000000000008BULL, 0x8000000000008089ULL,
    0x8000000000008003ULL, 0x8000000000008002ULL, 0x8000000000000080ULL, 0x000000000000800AULL, 0x800000008000000AULL,
    0x8000000080008081ULL, 0x8000000000008080ULL, 0x0000000080000001ULL, 0x8000000080008008ULL,
};

/* Words are little-endian whatever the machine is; compilers turn these into one move where it is, too. */
static uint64_t load64(const uint8_t *p)
{
    return (uint64_t)p[0] | (uint64_t)p[1] << 8 | (uint64_t)p[2] << 16 | (uint64_t)p[3] << 24 | (uint64_t)p[4] << 32
           | (uint64_t)p[5] << 40 | (uint64_t)p[6] << 48 | (uint64_t)p[7] << 56;
}

static void store64(uint8_t *p, uint64_t word)
{
    int i;
    for (i = 0; i < 8; i++)
        p[i] = (uint8_t)(word >> 8 * i);
}

/* --- one block at a time ------------------------------------------------------------------------------------------ */

#define FN(name) name##_scalar
#define TARGET
#define LANES 1
#define V uint64_t
#define XOR(a, b) ((a) ^ (b))
#define XOR5(a, b, c, d, e) ((a) ^ (b) ^ (c) ^ (d) ^ (e))
#define CHI(a, b, c) ((a) ^ (~(b) & (c)))
#define ROL(a, n) rotate(a, n)
#define SET1(word) (word)
#define ZERO 0
#define TRANSPOSE(w, in, size) (*(w) = load64(in))
#define STORE(p, v) (*(p) = (v))
static uint64_t rotate(uint64_t word, int bits)
{
    return word << bits | word >> (64 - bits);
}
#include "_keccak_lanes.h"

#ifdef HAVE_X86

/* --- SSE2: 2 ------------------------------------------------------------------------------------------------------ */

#define FN(name) name##_sse2
#define TARGET ATTRIBUTE("sse2")
#define LANES 2
#define V __m128i
#define XOR(a, b) _mm_xor_si128(a, b)
#define XOR5(a, b, c, d, e) XOR(XOR(XOR(a, b), XOR(c, d)), e)
#define CHI(a, b, c) XOR(a, _mm_andnot_si128(b, c))
#define ROL(a, n) rotate_sse2(a, n)
#define SET1(word) _mm_set1_epi64x((long long)(word))
#define ZERO _mm_setzero_si128()
#define TRANSPOSE(w, in, size) transpose_sse2(w, in, size)
#define STORE(p, v) _mm_storeu_si128((__m128i *)(p), v)
static inline __m128i rotate_sse2(__m128i word, int bits)
{
    return _mm_or_si128(_mm_slli_epi64(word, bits), _mm_srli_epi64(word, 64 - bits));
}
static inline void transpose_sse2(__m128i *w, const uint8_t *in, size_t size)
{
    __m128i a = _mm_loadu_si128((const __m128i *)in), b = _mm_loadu_si128((const __m128i *)(in + size));
    w[0] = _mm_unpacklo_epi64(a, b);
    w[1] = _mm_unpackhi_epi64(a, b);
}
#include "_keccak_lanes.h"

/* --- AVX2: 4 ------------------------------------------------------------------------------------------------------ */

#define FN(name) name##_avx2
#define TARGET ATTRIBUTE("avx2")
#define LANES 4
#define V __m256i
#define XOR(a, b) _mm256_xor_si256(a, b)
#define XOR5(a, b, c, d, e) XOR(XOR(XOR(a, b), XOR(c, d)), e)
#define CHI(a, b, c) XOR(a, _mm256_andnot_si256(b, c))
#define ROL(a, n) rotate_avx2(a, n)
#define SET1(word) _mm256_set1_epi64x((long long)(word))
#define ZERO _mm256_setzero_si256()
#define TRANSPOSE(w, in, size) transpose_avx2(w, in, size)
#define STORE(p, v) _mm256_storeu_si256((__m256i *)(p), v)
ATTRIBUTE("avx2") static inline __m256i rotate_avx2(__m256i word, int bits)
{
    return _mm256_or_si256(_mm256_slli_epi64(word, bits), _mm256_srli_epi64(word, 64 - bits));
}
ATTRIBUTE("avx2") static inline void transpose_avx2(__m256i *w, const uint8_t *in, size_t size)
{
    __m256i a = _mm256_loadu_si256((const __m256i *)in), b = _mm256_loadu_si256((const __m256i *)(in + size)),
            c = _mm256_loadu_si256((const __m256i *)(in + 2 * size)),
            d = _mm256_loadu_si256((const __m256i *)(in + 3 * size));
    __m256i ab02 = _mm256_unpacklo_epi64(a, b), ab13 = _mm256_unpackhi_epi64(a, b),
            cd02 = _mm256_unpacklo_epi64(c, d), cd13 = _mm256_unpackhi_epi64(c, d);
    w[0] = _mm256_permute2x128_si256(ab02, cd02, 0x20);
    w[1] = _mm256_permute2x128_si256(ab13, cd13, 0x20);
    w[2] = _mm256_permute2x128_si256(ab02, cd02, 0x31);
    w[3] = _mm256_permute2x128_si256(ab13, cd13, 0x31);
}
#include "_keccak_lanes.h"

/* --- AVX-512: 8, with rotations and three-way logic of its own ----------------------------------------------------- */

#define FN(name) name##_avx512
#define TARGET ATTRIBUTE("avx512f")
#define LANES 8
#define V __m512i
#define XOR(a, b) _mm512_xor_si512(a, b)
#define XOR5(a, b, c, d, e) _mm512_ternarylogic_epi64(_mm512_ternarylogic_epi64(a, b, c, 0x96), d, e, 0x96)
#define CHI(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0xD2)
#define ROL(a, n) _mm512_rol_epi64(a, n)
#define SET1(word) _mm512_set1_epi64((long long)(word))
#define ZERO _mm512_setzero_si512()
#define TRANSPOSE(w, in, size) transpose_avx512(w, in, size)
#define STORE(p, v) _mm512_storeu_si512(p, v)
ATTRIBUTE("avx512f") static inline void transpose_avx512(__m512i *w, const uint8_t *in, size_t size)
{
    __m512i row[8], pair[8], four[8];
    int i;
    for (i = 0; i < 8; i++)
        row[i] = _mm512_loadu_si512(in + i * size);
    for (i = 0; i < 8; i += 2) {
        pair[i] = _mm512_unpacklo_epi64(row[i], row[i + 1]);
        pair[i + 1] = _mm512_unpackhi_epi64(row[i], row[i + 1]);
    }
    for (i = 0; i < 8; i += 4) { /* 128-bit parts 0, 2 of two pairs, then 1, 3 */
        four[i] = _mm512_shuffle_i64x2(pair[i], pair[i + 2], 0x88);
        four[i + 1] = _mm512_shuffle_i64x2(pair[i + 1], pair[i + 3], 0x88);
        four[i + 2] = _mm512_shuffle_i64x2(pair[i], pair[i + 2], 0xDD);
        four[i + 3] = _mm512_shuffle_i64x2(pair[i + 1], pair[i + 3], 0xDD);
    }
    for (i = 0; i < 4; i++) {
        w[i] = _mm512_shuffle_i64x2(four[i], four[i + 4], 0x88);
        w[i + 4] = _mm512_shuffle_i64x2(four[i], four[i + 4], 0xDD);
    }
}
#include "_keccak_lanes.h"

#if defined(_MSC_VER) && !defined(__clang__)
static int cpu_has(int feature_bit, unsigned long long saved_state)
{
    int leaf[4];
    __cpuid(leaf, 0);
    if (leaf[0] < 7)
        return 0;
    __cpuid(leaf, 1);
    if (!(leaf[2] & 1 << 27) || (_xgetbv(0) & saved_state) != saved_state)
        return 0;
    __cpuidex(leaf, 7, 0);
    return (int)((unsigned)leaf[1] >> feature_bit & 1);
}
#define CPU_AVX2 cpu_has(5, 0x06)
#define CPU_AVX512 cpu_has(16, 0xE6)
#else
#define CPU_AVX2 __builtin_cpu_supports("avx2")
#define CPU_AVX512 __builtin_cpu_supports("avx512f")
#endif

#elif defined(HAVE_NEON)

/* --- NEON: 2 ------------------------------------------------------------------------------------------------------ */

#define FN(name) name##_neon
#define TARGET
#define LANES 2
#define V uint64x2_t
#define XOR(a, b) veorq_u64(a, b)
#define XOR5(a, b, c, d, e) XOR(XOR(XOR(a, b), XOR(c, d)), e)
#define CHI(a, b, c) XOR(a, vbicq_u64(c, b))
#define ROL(a, n) vsriq_n_u64(vshlq_n_u64(a, n), a, 64 - (n))
#define SET1(word) vdupq_n_u64(word)
#define ZERO vdupq_n_u64(0)
#define TRANSPOSE(w, in, size) transpose_neon(w, in, size)
#define STORE(p, v) vst1q_u64(p, v)
static inline void transpose_neon(uint64x2_t *w, const uint8_t *in, size_t size)
{
    uint64x2_t a = vreinterpretq_u64_u8(vld1q_u8(in)), b = vreinterpretq_u64_u8(vld1q_u8(in + size));
    w[0] = vtrn1q_u64(a, b);
    w[1] = vtrn2q_u64(a, b);
}
#include "_keccak_lanes.h"

#endif

/* --- choice ------------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    size_t lanes;
    void (*hash)(const uint8_t *in, size_t size, uint8_t *out);
} Variant;

static Variant variants[4]; /* what this machine can do, best first */
static int variant_count = 0;

static void find_variants(void)
{
    Variant found[4];
    int count = 0;
#ifdef HAVE_X86
    if (CPU_AVX512)
        found[count++] = (Variant){"avx512", 8, hash_avx512};
    if (CPU_AVX2)
        found[count++] = (Variant){"avx2", 4, hash_avx2};
    found[count++] = (Variant){"sse2", 2, hash_sse2};
#elif defined(HAVE_NEON)
    found[count++] = (Variant){"neon", 2, hash_neon};
#endif
    found[count++] = (Variant){"scalar", 1, hash_scalar};
    memcpy(variants, found, sizeof(found)); /* the same each time: a second module object may do it again */
    variant_count = count;
}

static void hash_all(const Variant *variant, const uint8_t *in, size_t size, size_t count, uint8_t *out)
{
    size_t done = 0;
    for (; count - done >= variant->lanes; done += variant->lanes)
        variant->hash(in + done * size, size, out + done * DIGEST);
    if (done < count && count >= variant->lanes) { /* the last few together with some before them, once more */
        uint8_t last[8 * DIGEST];
        size_t first = count - variant->lanes;
        variant->hash(in + first * size, size, last);
        memcpy(out + done * DIGEST, last + (done - first) * DIGEST, (count - done) * DIGEST);
        return;
    }
    for (; done < count; done++)
        hash_scalar(in + done * size, size, out + done * DIGEST);
}

/* Roots of `trees` trees whose leaves are `leaves` chunks each, a power of two. `work` holds a digest per chunk. */
static void tree_roots(const Variant *variant, const uint8_t *in, size_t size, size_t leaves, size_t trees,
                       uint8_t *work)
{
    hash_all(variant, in, size, leaves * trees, work);
    for (; leaves > 1; leaves /= 2) {
        size_t pairs = leaves / 2 * trees, block = 0;
        uint8_t digests[64 * DIGEST];
        while (block < pairs) { /* over a copy: parents are written where children stand */
            size_t some = pairs - block < 64 ? pairs - block : 64;
            hash_all(variant, work + block * 2 * DIGEST, 2 * DIGEST, some, digests);
            memcpy(work + block * DIGEST, digests, some * DIGEST);
            block += some;
        }
    }
}

/* --- Python ------------------------------------------------------------------------------------------------------- */

static const Variant *pick(int index)
{
    if (index >= 0 && index < variant_count)
        return &variants[index];
    PyErr_Format(PyExc_ValueError, "no variant %d, there are %d", index, variant_count);
    return NULL;
}

static PyObject *hash_blocks(PyObject *module, PyObject *args)
{
    Py_buffer data;
    Py_ssize_t size;
    int index = 0;
    PyObject *digests = NULL;
    const Variant *variant;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*n|i:hash_blocks", &data, &size, &index))
        return NULL;
    variant = pick(index);
    if (variant != NULL && (size < 64 || size > 256 || size % 64 != 0 || data.len % size != 0))
        PyErr_SetString(PyExc_ValueError, "not whole blocks of 64, 128, 192 or 256 bytes");
    else if (variant != NULL)
        digests = PyBytes_FromStringAndSize(NULL, data.len / size * DIGEST);
    if (digests != NULL) {
        uint8_t *out = (uint8_t *)PyBytes_AsString(digests);
        PyThreadState *thread = data.len >= RELEASE_FROM ? PyEval_SaveThread() : NULL;
        hash_all(variant, data.buf, (size_t)size, (size_t)(data.len / size), out);
        if (thread != NULL)
            PyEval_RestoreThread(thread);
    }
    PyBuffer_Release(&data);
    return digests;
}

static PyObject *subtree_roots(PyObject *module, PyObject *args)
{
    Py_buffer data;
    Py_ssize_t size, leaves;
    int index = 0;
    PyObject *roots = NULL;
    const Variant *variant;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*nn|i:subtree_roots", &data, &size, &leaves, &index))
        return NULL;
    variant = pick(index);
    if (variant != NULL
        && (size < 64 || size > 256 || size % 64 != 0 || leaves < 1 || leaves > 1048576 || (leaves & (leaves - 1)) != 0
            || data.len % (size * leaves) != 0))
        PyErr_SetString(PyExc_ValueError, "not whole trees of a power of two of blocks");
    else if (variant != NULL) {
        size_t trees = (size_t)(data.len / (size * leaves));
        uint8_t *work = PyMem_Malloc(trees * (size_t)leaves * DIGEST + 1);
        if (work == NULL)
            PyErr_NoMemory();
        else {
            PyThreadState *thread = data.len >= RELEASE_FROM ? PyEval_SaveThread() : NULL;
            tree_roots(variant, data.buf, (size_t)size, (size_t)leaves, trees, work);
            if (thread != NULL)
                PyEval_RestoreThread(thread);
            roots = PyBytes_FromStringAndSize((const char *)work, (Py_ssize_t)(trees * DIGEST));
            PyMem_Free(work);
        }
    }
    PyBuffer_Release(&data);
    return roots;
}

static int fill(PyObject *module)
{
    PyObject *names;
    int i, failed;
    find_variants();
    names = PyTuple_New(variant_count);
    if (names == NULL)
        return -1;
    for (i = 0; i < variant_count; i++) {
        PyObject *name = PyUnicode_FromString(variants[i].name);
        if (name == NULL || PyTuple_SetItem(names, i, name) < 0) {
            Py_DECREF(names);
            return -1;
        }
    }
    failed = PyModule_AddObjectRef(module, "VARIANTS", names);
    Py_DECREF(names);
    return failed;
}

static PyMethodDef methods[] = {
    {"hash_blocks", hash_blocks, METH_VARARGS,
     "hash_blocks(data, size, variant=0, /)\n--\n\nReturn the digests of all blocks of `size` bytes, joined."},
    {"subtree_roots", subtree_roots, METH_VARARGS,
     "subtree_roots(data, size, leaves, variant=0, /)\n--\n\n"
     "Return the roots of all trees of `leaves` blocks of `size` bytes, joined."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)fill},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_keccak", "Keccak-256 over many blocks at once.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__keccak(void)
{
    return PyModuleDef_Init(&definition);
}
