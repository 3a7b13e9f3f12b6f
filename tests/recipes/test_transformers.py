"""Transformers quantized end to end, and a language model on the engine inside a structure predictor."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import fptq  # noqa: E402
from fptq.recipes.problem import open_problem  # noqa: E402

RESIDUES = "LAGVSERTIDPKQNFYMHWC"
VOCABULARY = ["<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES, "X", "B", "U", "Z", "O", ".", "-", "<null_1>", "<mask>"]
FAST = {"engine": "onnxruntime", "gate": "off", "threads": 1}


def esm_config(**more):
    return transformers.EsmConfig(
        vocab_size=33,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        pad_token_id=1,
        mask_token_id=32,
        max_position_embeddings=64,
        position_embedding_type="rotary",
        token_dropout=True,
        **more,
    )


@pytest.fixture
def esm():
    torch.manual_seed(0)
    return transformers.EsmModel(esm_config(), add_pooling_layer=False).eval()


def tokens(length, seed=0, padding=0):
    ids = torch.randint(4, 24, (1, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(1, length, dtype=torch.long)
    if padding:
        ids, mask = (torch.nn.functional.pad(part, (0, padding), value=fill) for part, fill in ((ids, 1), (mask, 0)))
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_keyword_batches_in_and_the_same_call_out(esm, tmp_path, engine):
    sequences = [tokens(length, seed) for seed, length in enumerate((8, 8, 11, 11, 8, 15, 9, 9))]
    calibration = fptq.bucket_by_length(sequences, batch_size=2)
    result = fptq.quantize(esm, calibration=calibration, cache=tmp_path, **FAST | {"engine": engine})
    module, call = result.as_module(), tokens(23)
    found, expected = module(**call), esm(**call)
    assert type(found) is type(expected)
    assert found.last_hidden_state.shape == (1, 23, 32)
    assert (found[0] - expected[0]).norm() < 0.1 * expected[0].norm()


def test_lengths_sorted_in_one_list_are_all_seen(esm, tmp_path):
    calibration = [tokens(length) for length in (8, 8, 8, 8, 8, 13)]
    problem = open_problem(esm, calibration, fptq.Recipe(cache=tmp_path, **FAST))
    assert problem.model.inputs[0].shape == ("batch", "input_ids_1")


def test_padding_does_not_reach_the_statistics(tmp_path):
    """A padded set gives the ranges of the same set without padding, however large the padding token is."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 33, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=64, pad_token_id=1)).eval()
    net.embeddings.word_embeddings.weight.data[1, 3] = 100
    plain = [tokens(length, length) for length in (8, 12, 10, 9, 11)]
    padded = [tokens(length, length, padding=20 - length) for length in (8, 12, 10, 9)] + [plain[-1]]
    made = [
        fptq.quantize(net, calibration=samples, cache=tmp_path / name, **FAST)
        for name, samples in (("plain", plain), ("padded", padded))
    ]
    assert made[0].encoding.params.keys() == made[1].encoding.params.keys()
    for site, params in made[0].encoding.params.items():
        np.testing.assert_allclose(params.scale, made[1].encoding.params[site].scale, rtol=1e-4)


def test_a_call_with_another_flag_is_no_sample(esm, tmp_path):
    with fptq.record(esm) as samples:
        esm(**tokens(8), output_hidden_states=True)
        esm(**tokens(9), output_hidden_states=True)
        esm(**tokens(9), output_hidden_states=False)
    with pytest.raises(fptq.DataError, match=r"sample 2: argument output_hidden_states is False"):
        list(open_problem(esm, samples, fptq.Recipe(cache=tmp_path, **FAST)).calibration)


@pytest.fixture(params=[False, True], ids=["single", "half"])
def fold(request):
    structure = {"sequence_dim": 32, "pairwise_dim": 16, "ipa_dim": 4, "resnet_dim": 8, "num_heads_ipa": 2}
    structure |= {"num_qk_points": 2, "num_v_points": 2, "num_blocks": 1}
    trunk = {"num_blocks": 1, "sequence_state_dim": 32, "pairwise_state_dim": 16, "sequence_head_width": 8}
    trunk |= {"pairwise_head_width": 8, "position_bins": 4, "max_recycles": 1, "structure_module": structure}
    folding = {"fp16_esm": request.param, "lddt_head_hid_dim": 8, "trunk": trunk}
    torch.manual_seed(0)
    config = esm_config(is_folding_model=True, vocab_list=VOCABULARY, esmfold_config=folding)
    return transformers.EsmForProteinFolding(config).eval()


def test_a_structure_predictor_with_its_language_model_on_the_engine(fold, tmp_path):
    """ESMFold: recorded while it folds, put back, and folding again, alone and in a padded batch."""
    sequences = ["MKTAYIAKQR", "MKTAYIAKQRQISFVK", "GSHMLEDPV"]
    before = fold.infer_pdb(sequences[0])
    with fptq.record(fold.esm) as samples:
        for sequence in sequences:
            fold.infer(sequence)
        fold.infer(["MKTAYLLL", "MKTAY"])
    language = fold.esm
    call = samples[0]
    result = fptq.quantize(language, calibration=samples, cache=tmp_path, **FAST)
    fold.esm = result.as_module()
    found, expected = fold.esm(*call[0], **call[1]), language(*call[0], **call[1])
    assert type(found) is type(expected)
    assert found.hidden_states[0].dtype is expected.hidden_states[0].dtype
    after = fold.infer_pdb(sequences[0])
    assert [line[:26] for line in after.splitlines()] == [line[:26] for line in before.splitlines()]
    assert after.count(" CA ") == len(sequences[0])
    assert len(fold.infer_pdbs(["GSH", "GSHMLEDPVLLLWQ"])) == 2


def test_a_local_checkpoint_is_quantized(esm, tmp_path):
    transformers.EsmForMaskedLM(esm.config).save_pretrained(tmp_path / "esm")
    calibration = [tokens(length) for length in (8, 9, 10)]
    result = fptq.quantize(str(tmp_path / "esm"), calibration=calibration, cache=tmp_path / "cache", **FAST)
    assert type(result.as_module()(**tokens(6))) is transformers.modeling_outputs.MaskedLMOutput
