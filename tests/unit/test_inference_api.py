"""The inference provider's API against the vectors of both SDKs and of the provider."""

from fractions import Fraction
from types import SimpleNamespace

import pytest

from tests.golden import ids, unhex, vectors
from zg_async.errors import ConfigError, ProviderReplyError
from zg_async.wire import inference_api as api
from zg_async.wire import signing
from zg_async.wire.envelope import public_key
from zg_async.wire.inference_api import InvalidTokenError, Refusal
from zg_async.wire.records import AdapterState, Usage

V = vectors("inference")
FT = vectors("fine-tuning")
PROVIDER = FT["keys"]["bob"]["address"]
USER = FT["keys"]["alice"]["address"]
ID = "1f6fef2b-e0f6-4a28-9ebe-86d5370b1934"


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.goal("ADP-06", part="local rule")
@pytest.mark.parametrize("row", V["adapter_names"], ids=range(len(V["adapter_names"])))
def test_adapter_names_follow_the_newest_provider(row):
    assert api.adapter_name(row["base_model"], row["task_id"]) == row["go_provider_newest"]
    assert api.peer_adapter_name(row["base_model"], row["task_id"]) == row["ts_sdk"]


@pytest.mark.goal("ADP-06", part="local rule")
@pytest.mark.parametrize("row", FT["adapter_name"], ids=range(len(FT["adapter_name"])))
def test_peer_names_can_be_recognised(row):
    assert api.peer_adapter_name(row["base_model"], row["task_id"]) == row["adapter_name"]


def test_base_models_are_compared_without_path_and_case():
    assert api.same_model("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b-instruct")
    assert not api.same_model("Qwen3-32B", "Qwen2.5-0.5B-Instruct")


def test_paths_are_quoted():
    assert api.adapter_path("ft-a/b c") == "/v1/lora/adapters/ft-a%2Fb%20c"
    assert api.proxy_url("http://p/") == "http://p/v1/proxy"
    assert api.signature_path("k/", "Qwen/x") == "/v1/proxy/signature/k%2F?model=Qwen%2Fx"


# --- tokens ----------------------------------------------------------------------------------------------------------


def account_of(row: dict) -> SimpleNamespace | None:
    found = row["account"]
    if not found["exists"]:
        return None
    return SimpleNamespace(generation=found["generation"], revoked_bitmap=int(found["revoked_bitmap"]))


def make_token(row: dict) -> str:
    account = account_of(row)
    ephemeral = row["mode"] == "ephemeral"
    seconds = None if row["duration_ms"] is None else row["duration_ms"] / 1000
    bitmap = account.revoked_bitmap if account else 0
    key = unhex(row["private_key"])
    raw = signing.session_token_json(
        address=signing.public_key_address(public_key(key)),
        provider=row["provider"],
        timestamp_ms=row["timestamp_ms"],
        expires_at_ms=api.token_expiry(row["timestamp_ms"], seconds, ephemeral=ephemeral),
        nonce=row["nonce"],
        generation=account.generation if account else 0,
        token_id=api.EPHEMERAL_TOKEN_ID if ephemeral else api.pick_token_id(bitmap, row["token_id"]),
    )
    signature = signing.sign_digest(key, signing.eip191_hash(signing.session_token_hash(raw)))
    return signing.encode_session_token(raw, signature)


@pytest.mark.goal("DOC-07", part="session tokens")
@pytest.mark.parametrize("row", V["session_tokens"], ids=ids(V["session_tokens"]))
def test_session_tokens_are_the_peers(row):
    assert make_token(row) == row["expect"]["api_key"]


@pytest.mark.parametrize("row", V["session_token_errors"], ids=ids(V["session_token_errors"]))
def test_session_tokens_that_cannot_be_made(row):
    with pytest.raises(ConfigError):
        make_token(row)


REASONS = {
    "different provider": "session token is for different provider",
    "expired": "session token expired",
    "revoked (generation)": "session token has been revoked (generation expired)",
    "revoked (bitmap)": "session token has been revoked",
    "address mismatch": "signature verification failed: address mismatch",
    "future generation": "invalid session token (future generation)",
    "ephemeral token must expire": "ephemeral token must have an expiration time",
    "ephemeral over 24h": "ephemeral token duration cannot exceed 24 hours",
    "invalid signature format": "invalid signature format",
    "failed to recover": "signature verification failed: failed to recover",
    "missing or invalid Authorization header": "missing or invalid Authorization header",
    "invalid base64": "invalid base64",
    "invalid payload": "invalid payload",
}


@pytest.mark.goal("DOC-07", part="token checks")
@pytest.mark.parametrize("row", V["provider_token_checks"], ids=ids(V["provider_token_checks"]))
def test_tokens_are_checked_as_providers_do(row):
    def check():
        return api.check_session_token(
            row["authorization"],
            serving_provider=row["serving_provider"],
            now_ms=row["now_ms"],
            account=account_of(row),
        )

    if row["expect"]["accepted"]:
        assert check() == api.presented_token(row["authorization"])
        return
    with pytest.raises(InvalidTokenError) as caught:
        check()
    assert str(caught.value) == REASONS[row["expect"]["reason"]]


STALE = [r for r in REASONS.values() if "token" in r and any(w in r for w in ("revoked", "generation", "expired"))]


@pytest.mark.parametrize("reason", STALE)
def test_stale_tokens_are_recognised(reason):
    assert api.is_stale_token(f"Provider proxy: handle proxied service, validate: {reason}")


def test_other_refusals_are_not_stale_tokens():
    for text in (
        "insufficient balance",
        "model not supported",
        "session token is for different provider",
        "expired card",
    ):
        assert not api.is_stale_token(text)


def test_the_lowest_free_id_is_taken():
    assert api.pick_token_id(0) == 0
    assert api.pick_token_id(0b1011) == 2
    assert api.pick_token_id(0, 254) == 254
    with pytest.raises(ConfigError, match="revoke_all_tokens"):
        api.pick_token_id(2**255 - 1)


@pytest.mark.parametrize("row", V["signature_verification"], ids=ids(V["signature_verification"]))
def test_answer_signatures(row):
    assert api.is_signed_by(row["text"], row["signature"], row["address"]) == row["expect_valid"]


@pytest.mark.parametrize("bad", ["", "0x", "0xzz", "0x" + "00" * 64, "é"])
def test_malformed_answer_signatures_are_by_nobody(bad):
    assert not api.is_signed_by("text", bad, USER)


# --- adapters --------------------------------------------------------------------------------------------------------

ADAPTER = {
    "adapterName": "ft-x",
    "taskId": ID,
    "baseModel": "Qwen",
    "state": "active",
    "userAddress": USER.lower(),
    "storageRootHash": "0x12",
}


def test_adapters_are_read():
    found = api.parse_adapter(ADAPTER, provider=PROVIDER)
    assert (found.adapter_name, found.task_id, found.state, found.user) == ("ft-x", ID, AdapterState.ACTIVE, USER)
    assert api.parse_adapters({"adapters": [ADAPTER]}, provider=PROVIDER) == (found,)
    assert api.parse_adapters(b'{"adapters":null}', provider=PROVIDER) == ()


def test_an_unknown_adapter_state_is_kept():
    found = api.parse_adapter({**ADAPTER, "state": "melting", "userAddress": "?"}, provider=PROVIDER)
    assert (found.state, found.state_text, found.user) == (AdapterState.UNKNOWN, "melting", None)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"adapterName":1,"state":"x"}', b'{"adapters":{}}'])
def test_adapters_that_cannot_be_read_are_reply_errors(body):
    with pytest.raises(ProviderReplyError):
        api.parse_adapter(body, provider=PROVIDER)
    if body not in (b"[]", b"{}") and b"state" not in body:
        with pytest.raises(ProviderReplyError):
            api.parse_adapters(body, provider=PROVIDER)


def test_deployments_are_read():
    body = b'{"status":"deploying","adapterName":"ft-x","message":"started"}'
    assert api.parse_deploy(body, provider=PROVIDER) == ("ft-x", "started")
    assert api.parse_deploy({"status": "deploying"}, provider=PROVIDER) == ("", "deploying")
    with pytest.raises(ProviderReplyError):
        api.parse_deploy(b"[]", provider=PROVIDER)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("fine-tuned model not found: ft-x", Refusal.UNKNOWN_ADAPTER),
        ("adapter not found: ft-x", Refusal.UNKNOWN_ADAPTER),
        ("adapter ft-x not found", Refusal.UNKNOWN_ADAPTER),
        ("access denied: you are not the owner of ft-x", Refusal.NOT_OWNER),
        ("you do not own this adapter", Refusal.NOT_OWNER),
        ("model ft-x is downloaded but not deployed", Refusal.NOT_DEPLOYED),
        ("model ft-x is still loading", Refusal.LOADING),
        ("adapter ft-x is still being downloaded or deployed, please wait", Refusal.LOADING),
        ("model ft-x is restoring, please retry in 30 seconds", Refusal.RESTORING),
        ("model ft-x failed to deploy", Refusal.FAILED),
        ("LoRA serving not enabled", Refusal.DISABLED),
        ("insufficient balance", Refusal.OTHER),
        ("Service Unavailable", Refusal.OTHER),
    ],
)
def test_refusals_are_told_by_their_text(text, refusal):
    assert api.classify_refusal(f"Provider: {text}") is refusal
    assert (api.refusal_hint(text) is None) == (refusal is Refusal.OTHER)


def test_a_refused_deployment_may_be_under_way():
    assert api.deploy_is_under_way(409, "adapter ft-x is already deployed")
    assert api.deploy_is_under_way(409, "adapter ft-x is still being downloaded or deployed, please wait")
    assert not api.deploy_is_under_way(409, "adapter ft-x is in state archived, cannot deploy")
    assert not api.deploy_is_under_way(400, "adapter ft-x is already deployed")


# --- services --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", V["additional_info"], ids=range(len(V["additional_info"])))
def test_additional_info_with_denominators_folded(row):
    info = api.parse_additional_info(row["raw"])
    tiers = [
        {
            "maxInputTokens": t.max_input_tokens,
            "inputMultiplier": float(t.input_multiplier),
            "outputMultiplier": float(t.output_multiplier),
        }
        for t in info.tiers
    ]
    assert (tiers or None) == (row["tiered_pricing"] and row["tiered_pricing"]["tiers"])
    assert (info.cache_billing and {"divisor": info.cache_billing.divisor}) == row["cache_token_billing"]
    multi = {"multiModel": info.multi_model}
    if info.price_denomination:
        multi["priceDenomination"] = info.price_denomination
    assert multi == row["multi_model"]


def test_multipliers_are_exact():
    info = api.parse_additional_info(
        '{"tieredPricing":{"tiers":[{"maxInputTokens":0,"inputMultiplier":1,"inputMultiplierDenominator":3,'
        '"outputMultiplier":0.1}]},"cacheTokenBilling":{"divisor":4,"writeMultiplierNumerator":5,'
        '"writeMultiplierDenominator":4}}'
    )
    assert info.tiers[0].input_multiplier == Fraction(1, 3)
    assert info.tiers[0].output_multiplier == Fraction(1, 10)
    assert info.cache_billing.write_multiplier == Fraction(5, 4)


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "\ud800",
        "null",
        '{"tieredPricing":[]}',
        '{"tieredPricing":{"tiers":{}}}',
        '{"tieredPricing":{"tiers":[1]}}',
        '{"tieredPricing":{"tiers":[{"maxInputTokens":-1}]}}',
        '{"tieredPricing":{"tiers":[{"maxInputTokens":1,"inputMultiplier":"2","outputMultiplier":1}]}}',
        '{"tieredPricing":{"tiers":[{"maxInputTokens":1,"inputMultiplier":2,"outputMultiplier":{}}]}}',
        '{"tieredPricing":{"tiers":[{"maxInputTokens":1,"inputMultiplier":2,"outputMultiplierDenominator":0}]}}',
        '{"cacheTokenBilling":{"divisor":true}}',
        '{"VerifierURL":7,"TargetSeparated":"true","LoRAEnabled":"yes"}',
    ],
)
def test_malformed_additional_info_counts_as_absent(raw):
    info = api.parse_additional_info(raw)
    assert (info.tiers, info.cache_billing, info.verifier_url, info.target_separated) == ((), None, "", False)
    assert info.lora_enabled is None


def service(info: str) -> SimpleNamespace:
    return SimpleNamespace(additional_info=info, tee_signer_address=PROVIDER)


@pytest.mark.parametrize(
    ("info", "signer"),
    [
        ("{}", PROVIDER),
        ("junk", PROVIDER),
        (f'{{"TargetSeparated":true,"TargetTeeAddress":"{USER}"}}', USER),
        (f'{{"TargetSeparated":"true","TargetTeeAddress":"{USER}"}}', PROVIDER),
        (f'{{"TargetSeparated":true,"TargetTeeAddress":"{USER}","ProviderType":"centralized"}}', PROVIDER),
        (f'{{"TargetSeparated":true,"TargetTeeAddress":"{USER}","ProviderType":"odd"}}', USER),
        ('{"TargetSeparated":true,"TargetTeeAddress":""}', PROVIDER),
        ('{"TargetSeparated":true,"TargetTeeAddress":"0x12"}', None),
    ],
)
def test_who_has_to_sign_answers(info, signer):
    assert api.response_signer(service(info)) == signer


# --- chat ------------------------------------------------------------------------------------------------------------

CHAT = {
    "id": "chatcmpl-1",
    "model": "Qwen",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2},
}


def test_chat_answers_are_read():
    answer = api.parse_chat(CHAT, response_key="key", provider=PROVIDER)
    assert (answer.content, answer.finish_reason, answer.response_key) == ("Hi", "stop", "key")
    assert answer.usage == Usage(prompt_tokens=9, completion_tokens=2)
    assert api.parse_chat(CHAT, response_key=None, provider=PROVIDER).response_key == "chatcmpl-1"


def test_chat_answers_without_usage_or_content_are_read():
    bare = {"choices": [{"message": {"content": None}}], "usage": {"prompt_tokens": "x"}}
    answer = api.parse_chat(bare, response_key=None, provider=PROVIDER)
    assert (answer.content, answer.usage, answer.response_key) == ("", None, None)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[1]}', b'{"choices":[{}]}'])
def test_chat_answers_that_cannot_be_read_are_reply_errors(body):
    with pytest.raises(ProviderReplyError):
        api.parse_chat(body, response_key=None, provider=PROVIDER)
