import json
import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import fptq
from fptq.errors import ConfigError, DataError, EngineError, ModelError
from fptq.feeds.fasta import Protein
from fptq.feeds.tokenizer import Vocabulary, tokenized
from fptq.feeds.tokens import TokenInput, hidden_places
from fptq.graph.model import TensorInfo
from fptq.tasks import ProteinOutputs, ProteinTask, interval, paired_drop
from fptq.tasks.fingerprint import fingerprint
from fptq.tasks.proteins import GUESS_NOTE

TOKENS = ("<cls>", "<pad>", "<eos>", "<mask>", *"ACDEFGHIKLMNPQRSTVWY")
VOCABULARY = Vocabulary(tokens=TOKENS)
PERIOD, SHARP = 4, 8.0
PATTERNS = ("ACDE", "FGHI", "KLMN", "PQRS", "TVWY", "AGMS", "DRNE", "HKWY")
PROTEINS = tuple(Protein(name=f"p{i}", residues=pattern * (8 + i)) for i, pattern in enumerate(PATTERNS))


def taps():
    """A convolution that answers with the residues one period before and after: marks have no say."""
    size = len(TOKENS)
    kernel = np.zeros((size, size, 2 * PERIOD + 1), np.float32)
    residues = np.arange(4, size)
    kernel[residues, residues, 0] = kernel[residues, residues, -1] = SHARP
    return kernel


def logits_of(ids):
    """What the network below computes, `f32[N, T, V]`."""
    one_hot = np.eye(len(TOKENS), dtype=np.float32)[ids]
    one_hot[..., :4] = 0
    padded = np.pad(one_hot, [(0, 0), (PERIOD, PERIOD), (0, 0)])
    length = ids.shape[1]
    return SHARP * (padded[:, :length] + padded[:, 2 * PERIOD : 2 * PERIOD + length])


def periodic(feeds):
    """A network with its embedding."""
    ids = feeds["ids"]
    return {"last_hidden_state": np.cos(np.arange(5) * (1 + ids[..., None])), "logits": logits_of(ids)}


def blurred(feeds):
    outputs = periodic(feeds)
    noise = np.random.default_rng(0).normal(0, 3, outputs["logits"].shape)
    return {"last_hidden_state": outputs["last_hidden_state"] * 1.1 + 0.1, "logits": outputs["logits"] + noise}


def tokens_info(*shape):
    return TensorInfo(name="ids", dtype=np.dtype(np.int64), shape=shape)


def task(*, shape=("n", "t"), **options):
    return ProteinTask(
        **{
            "proteins": PROTEINS,
            "tokenizer": VOCABULARY,
            "network": TokenInput(tokens=tokens_info(*shape), pad=1),
            "outputs": ProteinOutputs(logits="logits", embedding="last_hidden_state"),
            "alone": None,
            **options,
        }
    )


def test_accuracy_and_perplexity_are_what_the_network_knows():
    scores = task().evaluate(periodic)
    expected = []
    for protein in PROTEINS:
        tokens = tokenized(protein, VOCABULARY)
        hidden = hidden_places(tokens, seed=0)
        row = tokens.ids.copy()
        row[hidden] = 3
        expected.append((logits_of(row[None])[0, hidden].argmax(1) == tokens.ids[hidden]).mean())
    assert scores["accuracy"].cases == pytest.approx(expected)
    assert scores["accuracy"].value == pytest.approx(np.mean(expected))
    assert scores.primary.name == "accuracy"
    # Hidden alone, a residue in the middle has two neighbours that name it (a logit of 16 against 0), and the four at
    # either end one.
    rest = len(TOKENS) - 1
    two, one = math.log(1 + rest * math.exp(-2 * SHARP)), math.log(1 + rest * math.exp(-SHARP))
    for protein, value in zip(PROTEINS, scores["pseudo_perplexity"].cases, strict=True):
        length = len(protein.residues)
        assert value == pytest.approx(math.exp((8 * one + (length - 8) * two) / length), rel=1e-6)
    logs = np.log(scores["pseudo_perplexity"].cases)
    assert scores["pseudo_perplexity"].value == pytest.approx(math.exp(logs.mean()))
    assert not scores["pseudo_perplexity"].higher_is_better
    assert scores.cases == tuple(p.name for p in PROTEINS)


def test_networks_are_compared_on_the_same_residues():
    scores = task().evaluate_all({"float": periodic, "int8": blurred})
    assert "agreement_accuracy" not in scores["float"]
    drop = paired_drop(scores["float"]["pseudo_perplexity"], scores["int8"]["pseudo_perplexity"])
    before, after = (scores[name]["pseudo_perplexity"].value for name in ("float", "int8"))
    assert drop.value == pytest.approx(after - before)
    assert 0 < drop.low < drop.value < drop.high
    agreement = {score.name: score.value for score in scores["int8"] if score.name.startswith("agreement")}
    assert set(agreement) == {"agreement_accuracy", "agreement_embedding", "agreement_embedding_sqnr"}
    assert 0 < agreement["agreement_accuracy"] < 1
    assert 0.9 < agreement["agreement_embedding"] < 1
    low, high = interval(scores["int8"]["accuracy"])
    assert low < scores["int8"]["accuracy"].value < high
    assert f"{low:.4g} to {high:.4g}" in scores["int8"].notes[-1]
    again = task().evaluate_all({"float": periodic, "int8": periodic})["int8"]
    assert again["agreement_accuracy"].value == again["agreement_embedding"].value == 1.0
    assert again["agreement_embedding_sqnr"].value == math.inf


def test_order_and_subset_of_the_sequences_change_no_case():
    whole, part = task().evaluate(blurred_by_sequence), task(proteins=PROTEINS[4:2:-1]).evaluate(blurred_by_sequence)
    for name in ("accuracy", "nll", "pseudo_perplexity"):
        assert part[name].cases == whole[name].cases[4:2:-1]


def blurred_by_sequence(feeds):
    noise = np.sin(np.arange(len(TOKENS)) * feeds["ids"].sum(1)[:, None, None])
    return {**periodic(feeds), "logits": logits_of(feeds["ids"]) + 4 * noise}


def test_padding_does_not_count():
    def poisoned(feeds):
        outputs = periodic(feeds)
        for value in outputs.values():
            value[feeds["ids"] == 1] = np.nan
        return outputs

    free = task().evaluate_all({"a": periodic, "b": periodic})["b"]
    for shape in (("n", 80), (3, 80)):
        fixed = task(shape=shape).evaluate_all({"a": poisoned, "b": poisoned})["b"]
        for score in free:
            assert fixed[score.name].cases == pytest.approx(score.cases)


def test_a_network_that_returns_nan_knows_nothing():
    scores = task().evaluate(lambda f: {k: v * np.nan for k, v in periodic(f).items()})
    assert scores["accuracy"].value == 0
    assert scores["pseudo_perplexity"].value == pytest.approx(1e7)


def test_few_residues_alone_estimate_the_same():
    calls = []

    def counting(feeds):
        calls.append(len(feeds["ids"]))
        return periodic(feeds)

    few = task(alone=6, outputs=ProteinOutputs(logits="logits", embedding=None)).evaluate(counting)
    assert sum(calls) == len(PROTEINS) * 7
    assert few["pseudo_perplexity"].value == pytest.approx(
        task().evaluate(periodic)["pseudo_perplexity"].value, rel=0.01
    )
    only = replace(task(), metrics=("accuracy",)).evaluate(periodic)
    assert [score.name for score in only] == ["accuracy"]


def test_an_encoder_alone_has_agreement_alone():
    encoder = task(outputs=ProteinOutputs(logits=None, embedding="last_hidden_state"))
    found = encoder.evaluate_all({"float": periodic, "int8": blurred})["int8"]
    assert [score.name for score in found] == ["agreement_embedding", "agreement_embedding_sqnr"]
    assert encoder.evaluate(periodic).primary is None


def test_which_output_is_which():
    def info(name, *shape):
        return TensorInfo(name=name, dtype=np.dtype(np.float32), shape=shape)

    both = ProteinOutputs.of([info("last_hidden_state", "n", "t", 8), info("pooled", "n", 8), info("y", "n", "t", 24)])
    assert (both.logits, both.embedding) == ("y", "last_hidden_state")
    assert ProteinOutputs.of([info("logits", "n", "t", 24)]) == ProteinOutputs(logits="logits", embedding=None)
    with pytest.raises(ModelError, match=r"\[N, T, C\]"):
        ProteinOutputs.of([info("pooled", "n", 8)])


def test_networks_that_do_not_fit():
    with pytest.raises(ModelError, match=r"p0 has token 7, and output 'logits' 6\. the vocabulary"):
        task().evaluate(lambda f: {**periodic(f), "logits": logits_of(f["ids"])[..., :6]})
    with pytest.raises(ModelError, match="no output 'logits'"):
        task().evaluate(lambda f: {"y": f["ids"]})
    with pytest.raises(DataError, match="p7 has 62 tokens"):
        task(shape=("n", 61)).evaluate(periodic)

    def short(feeds):
        if feeds["ids"].shape[1] > 50:
            raise EngineError("Gather: index out of range")
        return periodic(feeds)

    with pytest.raises(EngineError, match=r"p5 of 54 tokens failed: Gather.*table of positions"):
        task().evaluate(short)
    without = Vocabulary(tokens=TOKENS[:3] + TOKENS[4:])
    with pytest.raises(ConfigError, match="no token for masking"):
        task(tokenizer=without).evaluate(periodic)
    with pytest.raises(DataError, match="no sequence"):
        task(proteins=())


def test_the_same_task_has_the_same_fingerprint():
    assert fingerprint(task()) == fingerprint(task()) != fingerprint(task(seed=1))
    assert fingerprint(task()) is not None


def network(path, *, length="t", batch="n", mask=False):
    """The periodic network as a file, with an embedding of two layers."""
    size, width = len(TOKENS), 8
    generator = np.random.default_rng(0)
    table = np.eye(size, dtype=np.float32)
    table[:4] = 0
    nodes = [helper.make_node("Gather", ["table", "ids"], ["e"])]
    if mask:
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["m", "last"], ["m3"]),
            helper.make_node("Mul", ["e", "m3"], ["em"]),
        ]
    nodes += [
        helper.make_node("Transpose", ["em" if mask else "e"], ["c"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["c", "taps"], ["y"], pads=[PERIOD, PERIOD], kernel_shape=[2 * PERIOD + 1]),
        helper.make_node("Transpose", ["y"], ["logits"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["logits", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["last_hidden_state"]),
    ]
    stored = {"table": table, "taps": taps(), "w": generator.normal(size=(size, width)).astype(np.float32)}
    stored["last"] = np.array([2], np.int64)
    names = ["ids", *(["attention_mask"] if mask else [])]
    made = helper.make_graph(
        nodes,
        "periodic",
        [helper.make_tensor_value_info(name, TensorProto.INT64, [batch, length]) for name in names],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, length, size]),
            helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [batch, length, width]),
        ],
        [numpy_helper.from_array(array, name) for name, array in stored.items() if mask or name != "last"],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with sequences and a vocabulary."""
    pytest.importorskip("Bio", reason="needs the extra proteins")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    for name, some in (("calib", PROTEINS), ("val", PROTEINS[:4])):
        (tmp_path / f"{name}.fasta").write_text("".join(f">{p.name} x\n{p.residues}\n" for p in some))
    return tmp_path


OPTIONS = {"engine": "onnxruntime", "threads": 1, "gate": "off", "recipe": "fast", "task": "proteins"}


@pytest.mark.parametrize(("length", "batch", "mask"), [("t", "n", False), (64, 2, True), ("t", 1, True)])
def test_fasta_in_and_scores_out(folder, length, batch, mask):
    model = network(folder / "model.onnx", length=length, batch=batch, mask=mask)
    result = fptq.quantize(
        model, calibration="calib.fasta", validation="val.fasta", vocab="vocab.txt", cache=folder / "cache", **OPTIONS
    )
    report = result.report
    assert report.float.scores["accuracy"].value == report.quantized.scores["accuracy"].value > 0.9
    assert set(report.quantized.scores["pseudo_perplexity"].per_case) == {p.name for p in PROTEINS[:4]}
    assert report.agreement.scores["agreement_accuracy"].value == 1.0
    assert report.agreement.scores["agreement_embedding"].value > 0.99
    assert {drop.score: drop.cases for drop in report.drops} == {"accuracy": 4, "nll": 4, "pseudo_perplexity": 4}
    out = result.save(folder / "out")
    assert fptq.load_recipe(out).vocab == str(folder / "vocab.txt")


def test_the_same_on_the_command_line(folder):
    from fptq.cli import app

    network(folder / "model.onnx")
    (folder / "fptq.toml").write_text('gate = "off"\n')
    line = "quantize model.onnx --task proteins --calib calib.fasta --val val.fasta --config fptq.toml --recipe fast"
    options = "--engine onnxruntime --threads 1 --samples 6 -o out"
    refused = CliRunner().invoke(app, [*line.split(), *options.split()])
    assert refused.exit_code == ConfigError.exit_code
    done = CliRunner().invoke(app, [*line.split(), "--vocab", "vocab.txt", *options.split()])
    assert done.exit_code == 0, done.output
    document = json.loads((folder / "out" / "report.json").read_text())
    assert document["quantized"]["scores"]["accuracy"]["value"] > 0.9


def test_a_vocabulary_of_more_tokens_than_the_network_has_is_refused(folder):
    model = network(folder / "model.onnx")
    (folder / "long.txt").write_text("\n".join([*TOKENS[:4], *map("<{}>".format, range(40)), *TOKENS[4:]]) + "\n")
    given = {"calibration": "calib.fasta", "validation": "val.fasta", "cache": folder / "cache", **OPTIONS}
    with pytest.raises(DataError, match=rf"has token \d+, and the network {len(TOKENS)}.*--vocab"):
        fptq.quantize(model, vocab="long.txt", **given)


def test_a_vocabulary_in_another_order_is_noted():
    def moved(feeds):
        return {**periodic(feeds), "logits": np.roll(logits_of(feeds["ids"]), 1, axis=2)}

    right, wrong = (task().evaluate(one).notes for one in (periodic, moved))
    assert GUESS_NOTE in wrong
    assert GUESS_NOTE not in right


def test_a_module_is_exported_with_tokens(folder):
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(len(TOKENS), len(TOKENS))
            self.conv = torch.nn.Conv1d(len(TOKENS), len(TOKENS), 2 * PERIOD + 1, padding=PERIOD, bias=False)
            with torch.no_grad():
                self.table.weight.copy_(torch.eye(len(TOKENS)))
                self.table.weight[:4] = 0
                self.conv.weight.copy_(torch.from_numpy(taps()))

        def forward(self, ids):
            return self.conv(self.table(ids).transpose(1, 2)).transpose(1, 2)

    result = fptq.quantize(
        Module().eval(),
        calibration="calib.fasta",
        validation="val.fasta",
        vocab="vocab.txt",
        cache=folder / "cache",
        **OPTIONS,
    )
    assert result.report.quantized.scores["accuracy"].value > 0.9


def test_what_is_said_when_something_is_missing(folder):
    model = network(folder / "model.onnx")
    given = {"calibration": "calib.fasta", "validation": "val.fasta", **OPTIONS}
    with pytest.raises(ConfigError, match=r"without a vocabulary.*--vocab"):
        fptq.quantize(model, **given)
    with pytest.raises(ConfigError, match=r"no vocabulary at other\.txt"):
        fptq.quantize(model, vocab="other.txt", **given)
    with pytest.raises(ConfigError, match=r"without validation data\. it is scored on sequences.*FASTA"):
        fptq.quantize(model, vocab="vocab.txt", **given | {"validation": None})
    with pytest.raises(ConfigError, match=r"holds sequences, and the task is generic.*--task proteins"):
        fptq.quantize(model, **given | {"task": "generic"})
    with pytest.raises(ConfigError, match="vocab with task = 'generic'"):
        fptq.quantize(model, vocab="vocab.txt", **given | {"task": "generic"})
    (folder / "val.fasta").write_text(">odd\nACB\n")
    with pytest.raises(DataError, match="odd: residue 3 is 'B'"):
        fptq.quantize(model, vocab="vocab.txt", **given)
