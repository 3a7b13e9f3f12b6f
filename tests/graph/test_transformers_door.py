"""Hugging Face transformers through the door: any batch and length, and what they return."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from fptq.engines.module import EngineModule  # noqa: E402
from fptq.errors import DataError  # noqa: E402
from fptq.graph.load import load  # noqa: E402
from fptq.graph.parity import run_graph  # noqa: E402

ESM = {
    "vocab_size": 33,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "pad_token_id": 1,
    "mask_token_id": 32,
    "max_position_embeddings": 64,
}
BERT = {key: value for key, value in ESM.items() if key != "mask_token_id"}
T5 = {"vocab_size": 33, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 2}


def build(kind, config, **more):
    torch.manual_seed(0)
    return getattr(transformers, kind)(getattr(transformers, config)(**more)).eval()


def batch(size, length, padding=0):
    generator = torch.Generator().manual_seed(length)
    ids, mask = torch.randint(4, 24, (size, length), generator=generator), torch.ones(size, length, dtype=torch.long)
    if padding:
        ids[-1, -padding:], mask[-1, -padding:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


def through(net, **flags):
    """The network as its float graph computes it."""
    made = load(net, example={**batch(1, 9), **flags}, others=[{**batch(2, 12), **flags}])
    return EngineModule(lambda feeds: run_graph(made.graph_model, feeds), made.signature)


def same(module, net, call, **tolerance):
    with torch.no_grad():
        expected = net(**call)
    found = module(**call)
    assert type(found) is type(expected)
    torch.testing.assert_close(found, expected, **(tolerance or {"rtol": 1e-3, "atol": 1e-4}))
    return found


@pytest.mark.parametrize(
    ("kind", "config", "options"),
    [
        ("EsmModel", "EsmConfig", {**ESM, "position_embedding_type": "rotary", "token_dropout": True}),
        ("EsmModel", "EsmConfig", {**ESM, "position_embedding_type": "absolute", "emb_layer_norm_before": True}),
        ("EsmForMaskedLM", "EsmConfig", {**ESM, "position_embedding_type": "rotary"}),
        ("BertModel", "BertConfig", BERT),
        ("T5EncoderModel", "T5Config", T5),
    ],
    ids=["esm-rotary", "esm-absolute", "esm-masked", "bert", "prot-t5"],
)
def test_any_batch_and_length(kind, config, options):
    net = build(kind, config, **options)
    module = through(net)
    for call in (batch(3, 21), batch(1, 5), batch(4, 17, padding=6)):
        assert isinstance(same(module, net, call), transformers.utils.ModelOutput)


def esm(**more):
    return build("EsmModel", "EsmConfig", **ESM, position_embedding_type="rotary", **more)


def test_hidden_states_and_attentions_are_tuples_and_entries_of_none_stay_away():
    net = esm(attn_implementation="eager")
    found = same(
        through(net, output_hidden_states=True, output_attentions=True),
        net,
        {**batch(2, 8), "output_hidden_states": True, "output_attentions": True},
    )
    assert [len(found.hidden_states), len(found.attentions)] == [2, 1]
    assert found.past_key_values is None


def test_without_return_dict_the_result_is_a_tuple():
    net = esm()
    assert type(same(through(net, return_dict=False), net, {**batch(2, 8), "return_dict": False})) is tuple


def test_arguments_that_are_no_tensors_are_bound():
    net = esm()
    module = through(net, output_hidden_states=True)
    ids, mask = batch(2, 8).values()
    module(ids, mask, None, output_hidden_states=True, encoder_hidden_states=None)
    with pytest.raises(DataError, match=r"^argument output_hidden_states is False\. .*exported with True") as found:
        module(ids, mask, output_hidden_states=False)
    assert "\n" not in str(found.value)
    with pytest.raises(DataError, match=r"^argument output_hidden_states is missing"):
        module(ids, mask)
    with pytest.raises(DataError, match=r"^argument return_dict is False.*exported without it"):
        module(ids, mask, output_hidden_states=True, return_dict=False)
    with pytest.raises(DataError, match=r"^argument position_ids is a tensor \[2, 8\]"):
        module(ids, mask, position_ids=ids, output_hidden_states=True)
    with pytest.raises(DataError, match=r"^argument attention_mask is None.*with a tensor"):
        module(ids, attention_mask=None, output_hidden_states=True)
    with pytest.raises(DataError, match=r"^argument attention_mask is missing"):
        module(ids, output_hidden_states=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_in_and_comes_back(dtype):
    net = esm().to(dtype)
    call = {"inputs_embeds": torch.randn(1, 6, 32).to(dtype), "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    made = load(net, example=call)
    module = EngineModule(lambda feeds: run_graph(made.graph_model, feeds), made.signature)
    assert same(module, net, call, rtol=0.1, atol=0.1).last_hidden_state.dtype is dtype


def test_a_local_checkpoint_is_a_network(tmp_path):
    net = build("EsmForMaskedLM", "EsmConfig", **ESM, position_embedding_type="rotary")
    net.save_pretrained(tmp_path)
    made = load(tmp_path, example=batch(1, 9), others=[batch(2, 12)])
    assert made.source.endswith(".EsmForMaskedLM")
    same(EngineModule(lambda feeds: run_graph(made.graph_model, feeds), made.signature), net, batch(2, 7))
