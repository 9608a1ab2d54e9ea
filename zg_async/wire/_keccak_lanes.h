/* Keccak-256 of LANES blocks at once, for one instruction set. Included once per set by _keccak.c, which defines
 *   FN(name)                 the function's name for this set
 *   TARGET                   the function attribute that allows its instructions
 *   LANES, V                 how many 64-bit lanes a vector holds, and its type
 *   XOR, XOR5, CHI, ROL      a ^ b, five-fold xor, a ^ (~b & c), rotate left by a constant
 *   SET1, ZERO               the same number in each lane, and zero
 *   TRANSPOSE(w, in, size)   reads LANES words from each of LANES blocks that lie `size` bytes apart; w[i] gets word i of each
 *   STORE(p, v)              writes LANES words
 * and undefines them afterwards.
 */

#define ROW(e, i, c0, c1, c2, c3, c4)                                                                                  \
    do {                                                                                                               \
        V b0 = (c0), b1 = (c1), b2 = (c2), b3 = (c3), b4 = (c4);                                                       \
        e[i] = CHI(b0, b1, b2);                                                                                        \
        e[i + 1] = CHI(b1, b2, b3);                                                                                    \
        e[i + 2] = CHI(b2, b3, b4);                                                                                    \
        e[i + 3] = CHI(b3, b4, b0);                                                                                    \
        e[i + 4] = CHI(b4, b0, b1);                                                                                    \
    } while (0)

/* One round from a to e: theta's column parities and what each column is xored with, then rho, pi and chi row by row. */
#define ROUND(e, a, constant)                                                                                          \
    do {                                                                                                               \
        V p0 = XOR5(a[0], a[5], a[10], a[15], a[20]), p1 = XOR5(a[1], a[6], a[11], a[16], a[21]),                      \
          p2 = XOR5(a[2], a[7], a[12], a[17], a[22]), p3 = XOR5(a[3], a[8], a[13], a[18], a[23]),                      \
          p4 = XOR5(a[4], a[9], a[14], a[19], a[24]);                                                                  \
        V d0 = XOR(p4, ROL(p1, 1)), d1 = XOR(p0, ROL(p2, 1)), d2 = XOR(p1, ROL(p3, 1)), d3 = XOR(p2, ROL(p4, 1)),      \
          d4 = XOR(p3, ROL(p0, 1));                                                                                    \
        ROW(e, 0, XOR(a[0], d0), ROL(XOR(a[6], d1), 44), ROL(XOR(a[12], d2), 43), ROL(XOR(a[18], d3), 21),             \
            ROL(XOR(a[24], d4), 14));                                                                                  \
        e[0] = XOR(e[0], SET1(constant));                                                                              \
        ROW(e, 5, ROL(XOR(a[3], d3), 28), ROL(XOR(a[9], d4), 20), ROL(XOR(a[10], d0), 3), ROL(XOR(a[16], d1), 45),     \
            ROL(XOR(a[22], d2), 61));                                                                                  \
        ROW(e, 10, ROL(XOR(a[1], d1), 1), ROL(XOR(a[7], d2), 6), ROL(XOR(a[13], d3), 25), ROL(XOR(a[19], d4), 8),      \
            ROL(XOR(a[20], d0), 18));                                                                                  \
        ROW(e, 15, ROL(XOR(a[4], d4), 27), ROL(XOR(a[5], d0), 36), ROL(XOR(a[11], d1), 10), ROL(XOR(a[17], d2), 15),   \
            ROL(XOR(a[23], d3), 56));                                                                                  \
        ROW(e, 20, ROL(XOR(a[2], d2), 62), ROL(XOR(a[8], d3), 55), ROL(XOR(a[14], d4), 39), ROL(XOR(a[15], d0), 41),   \
            ROL(XOR(a[21], d1), 2));                                                                                   \
    } while (0)

TARGET static void FN(permute)(V *state)
{
    V a[25], e[25];
    int i;
    for (i = 0; i < 25; i++)
        a[i] = state[i];
    for (i = 0; i < 24; i += 2) {
        ROUND(e, a, ROUND_CONSTANTS[i]);
        ROUND(a, e, ROUND_CONSTANTS[i + 1]);
    }
    for (i = 0; i < 25; i++)
        state[i] = a[i];
}

/* Hash LANES blocks of `size` bytes, 64 to 256 and a multiple of 64, lying behind each other; digests do likewise. */
TARGET static void FN(hash)(const uint8_t *in, size_t size, uint8_t *out)
{
    V words[32], state[25];
    uint64_t digest[LANES];
    size_t count = size / 8, at = 0, i, lane;
    for (i = 0; i < count; i += LANES)
        TRANSPOSE(words + i, in + 8 * i, size);
    for (i = 0; i < 25; i++)
        state[i] = ZERO;
    for (; count - at >= RATE_WORDS; at += RATE_WORDS) {
        for (i = 0; i < RATE_WORDS; i++)
            state[i] = XOR(state[i], words[at + i]);
        FN(permute)(state);
    }
    for (i = 0; at < count; i++, at++)
        state[i] = XOR(state[i], words[at]);
    state[i] = XOR(state[i], SET1(1));
    state[RATE_WORDS - 1] = XOR(state[RATE_WORDS - 1], SET1(0x8000000000000000ULL));
    FN(permute)(state);
    for (i = 0; i < 4; i++) {
        STORE(digest, state[i]);
        for (lane = 0; lane < LANES; lane++)
            store64(out + 32 * lane + 8 * i, digest[lane]);
    }
}

#undef ROW
#undef ROUND
#undef FN
#undef TARGET
#undef LANES
#undef V
#undef XOR
#undef XOR5
#undef CHI
#undef ROL
#undef SET1
#undef ZERO
#undef TRANSPOSE
#undef STORE
