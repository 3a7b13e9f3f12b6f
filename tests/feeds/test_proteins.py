import gzip

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

pytest.importorskip("Bio", reason="needs the extra proteins")

from fptq.errors import ConfigError, DataError, ModelError
from fptq.feeds.fasta import Protein, is_fasta, read_fasta
from fptq.feeds.structures import places_in, read_chain
from fptq.feeds.tokenizer import Vocabulary, open_tokenizer, tokenized
from fptq.feeds.tokens import MaskedTokens, TokenInput, hidden_places, single_places, token_input
from fptq.graph.model import Model, TensorInfo

ESM = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO", ".", "-", "<null_1>", "<mask>")
"""The vocabulary of ESM-2."""
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWY")
"""That of AntiBERTy."""


def test_sequences_with_their_names(tmp_path):
    (tmp_path / "a.fasta").write_text(">first a protein\nACDE\nfg\n\n>second\nKL\n")
    with gzip.open(tmp_path / "b.fa.gz", "wt") as file:
        file.write(">third\nMM\n")
    expected = [("first", "ACDEFG"), ("second", "KL"), ("third", "MM")]
    assert [(p.name, p.residues) for p in read_fasta(tmp_path)] == expected
    assert [p.name for p in read_fasta(str(tmp_path / "*.fasta"))] == ["first", "second"]
    assert is_fasta(tmp_path)
    assert not is_fasta(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no sequence"),
        ("ACDE\n", "is no FASTA file"),
        (">a\n>b\nAC\n", r"sequence 1 \(a\) has no residue"),
        (">\nAC\n", r"sequence 1 \(without a name\)"),
        (">a x\nAC\n>a y\nDE\n", "two sequences are called 'a'"),
    ],
)
def test_files_that_are_refused(tmp_path, text, message):
    (tmp_path / "x.fasta").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_fasta(tmp_path / "x.fasta")
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path):
    with pytest.raises(DataError, match=r"does not exist\. samples are \.fasta"):
        read_fasta(tmp_path / "x.fasta")
    (tmp_path / "x.fasta.gz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read"):
        read_fasta(tmp_path / "x.fasta.gz")


@pytest.mark.parametrize(
    ("tokens", "ids", "mask", "pad"),
    [(ESM, [0, 20, 5, 2], 32, 1), (BERT, [2, 10, 5, 3], 4, 0), (("A", "M", "<mask>"), [1, 0], 2, None)],
)
def test_a_vocabulary_is_a_tokenizer(tmp_path, tokens, ids, mask, pad):
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    found = open_tokenizer(tmp_path / "vocab.txt")
    text = "MA" if tokens != BERT else "GA"
    assert list(found.encode(text)) == ids
    assert (found.mask_token_id, found.pad_token_id) == (mask, pad)
    assert all(tokens[i][0] in "<[" for i in found.all_special_ids)


def test_vocabularies_that_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no vocabulary at .*never downloaded"):
        open_tokenizer(tmp_path / "vocab.txt")
    with pytest.raises(ConfigError, match="has the token 'A' twice"):
        Vocabulary(tokens=("A", "C", "A"))
    with pytest.raises(ConfigError, match="no token of one letter"):
        Vocabulary(tokens=("hello", "world"))
    with pytest.raises(ConfigError, match=r"builtins:dict returned a dict.*mask_token_id"):
        open_tokenizer("builtins:dict")


def test_letters_that_are_no_residue():
    vocabulary = Vocabulary(tokens=BERT)
    with pytest.raises(
        DataError, match=r"p1: residue 3 is 'X', which is no residue of the vocabulary.*ACDEFGHIKLMNPQRSTVWY"
    ):
        tokenized(Protein(name="p1", residues="ACX"), vocabulary)
    with pytest.raises(DataError, match="p2: residue 1 is '1'"):
        tokenized(Protein(name="p2", residues="1A"), vocabulary)
    with pytest.raises(DataError, match="residue 2 is '-'"):
        tokenized(Protein(name="gap", residues="A-C"), Vocabulary(tokens=ESM))
    # X is in ESM's vocabulary, but nobody is asked what it stands for.
    found = tokenized(Protein(name="p3", residues="AXC"), Vocabulary(tokens=ESM))
    assert found.residues.tolist() == [1, 2, 3]
    assert found.known.tolist() == [1, 3]
    with pytest.raises(DataError, match="p4 has no known residue"):
        tokenized(Protein(name="p4", residues="XX"), Vocabulary(tokens=ESM))


def test_a_tokenizer_of_words_is_refused():
    class Words(Vocabulary):
        def encode(self, text):
            return [2, 1, 3]

    with pytest.raises(DataError, match=r"0 tokens for 4 residues.*spaces"):
        tokenized(Protein(name="p", residues="ACDE"), Words(tokens=BERT))


def test_masks_depend_on_the_seed_and_the_sequence_alone():
    def hides(residues, seed):
        return hidden_places(tokenized(Protein(name="p", residues=residues), vocabulary), seed=seed).tolist()

    vocabulary, sequence = Vocabulary(tokens=BERT), "ACDEFGHIKL" * 10
    assert len(hides(sequence, 0)) == 15
    assert hides(sequence, 0) == hides(sequence, 0) != hides(sequence, 1)
    assert len(hides("AC", 0)) == 1
    tokens = tokenized(Protein(name="p", residues=sequence), vocabulary)
    assert len(set(single_places(tokens, count=16, seed=0).tolist())) == 16
    assert single_places(tokens, count=None, seed=0).tolist() == list(range(1, 101))


def test_calibration_samples_are_masked_in_a_drawn_order():
    proteins = [Protein(name=str(i), residues="ACDEFGHIKL"[i:] * 4) for i in range(8)]
    found = MaskedTokens.of(proteins, Vocabulary(tokens=BERT), seed=0, limit=5)
    assert len(found) == 5
    assert [name for name, _ in found.rows] != [str(i) for i in range(5)]
    assert all((row == 4).any() and row.shape[0] == 1 for _, row in found.rows)


def info(name, *shape, dtype=np.int64):
    return TensorInfo(name=name, dtype=np.dtype(dtype), shape=shape)


def test_a_network_of_fixed_size_is_filled_up():
    network = TokenInput(
        tokens=info("ids", 2, 6, dtype=np.int32), mask=info("m", 2, 6), zeros=(info("t", 2, 6),), pad=1
    )
    feeds = network.feeds(np.array([[0, 7, 2]]), name="p")
    assert feeds["ids"].tolist() == [[0, 7, 2, 1, 1, 1]] * 2
    assert feeds["ids"].dtype == np.int32
    assert feeds["m"].tolist() == [[1, 1, 1, 0, 0, 0]] * 2
    assert not feeds["t"].any()
    with pytest.raises(DataError, match=r"p has 7 tokens\. the network takes 6"):
        network.feeds(np.zeros((1, 7), np.int64), name="p")
    with pytest.raises(DataError, match="no token for padding"):
        TokenInput(tokens=info("ids", 1, 6)).feeds(np.zeros((1, 3), np.int64), name="p")


def test_a_table_of_positions_has_an_end():
    network = TokenInput(tokens=info("ids", "n", "t"), positions=4)
    assert network.feeds(np.zeros((3, 4), np.int64), name="p")["ids"].shape == (3, 4)
    with pytest.raises(DataError, match=r"q has 5 tokens\. the network takes 4"):
        network.feeds(np.zeros((1, 5), np.int64), name="q")


THREE = {"A": "ALA", "G": "GLY", "S": "SER", "M": "MSE"}


def atom(serial, name, residue, number, xyz, chain="A", record="ATOM  "):
    xyz = "".join(f"{value:8.3f}" for value in xyz)
    return f"{record}{serial:5d}  {name:<3} {residue} {chain}{number:4d}    {xyz}  1.00  0.00           {name[0]}"


def pdb(path, sequence, *, numbers=None, points=None, chain="A", more=()):
    """A file with an alpha and a beta carbon (not for glycine) a residue."""
    numbers = numbers or range(1, len(sequence) + 1)
    points = np.arange(len(sequence))[:, None] * [3.8, 0, 0] if points is None else points
    lines = []
    for letter, number, point in zip(sequence, numbers, points, strict=True):
        record = "HETATM" if letter == "M" else "ATOM  "
        lines.append(atom(len(lines) + 1, "CA", THREE[letter], number, point, chain, record))
        if letter != "G":
            lines.append(atom(len(lines) + 1, "CB", THREE[letter], number, np.add(point, [0, 1.5, 0]), chain, record))
    path.write_text("\n".join([*lines, *more, "END", ""]))
    return path


def test_a_chain_of_a_structure(tmp_path):
    water = atom(90, "O", "HOH", 201, (9, 9, 9), record="HETATM")
    calcium = atom(91, "CA", " CA", 202, (9, 9, 9), record="HETATM")
    chain = read_chain(pdb(tmp_path / "x.pdb", "AGSM", more=(water, calcium)))
    assert chain.residues == "AGSM"
    assert chain.numbers.tolist() == [1, 2, 3, 4]
    assert chain.alpha[2].tolist() == pytest.approx([7.6, 0, 0], abs=1e-3)
    assert chain.beta[0].tolist() == pytest.approx([0, 1.5, 0])
    assert (chain.beta[1] == chain.alpha[1]).all()


def test_the_same_from_mmcif(tmp_path):
    from Bio.PDB import MMCIFIO, PDBParser

    writer = MMCIFIO()
    writer.set_structure(PDBParser(QUIET=True).get_structure("x", pdb(tmp_path / "x.pdb", "AGS")))
    writer.save(str(tmp_path / "x.cif"))
    chain, same = read_chain(tmp_path / "x.cif"), read_chain(tmp_path / "x.pdb")
    assert chain.residues == same.residues
    assert (chain.alpha == same.alpha).all()


def test_structures_that_are_refused(tmp_path):
    other = pdb(tmp_path / "b.pdb", "AA", chain="B").read_text().splitlines()[:-1]
    both = pdb(tmp_path / "ab.pdb", "AGS", more=other)
    with pytest.raises(DataError, match=r"has 2 chains.*'A', 'B'"):
        read_chain(both)
    assert read_chain(both, "B").residues == "AA"
    with pytest.raises(DataError, match="no chain 'C'"):
        read_chain(both, "C")
    points = np.zeros((3, 3))
    points[1] = np.nan
    with pytest.raises(DataError, match=r"residue 2 \(G\) has NaN or Inf.*finite"):
        read_chain(pdb(tmp_path / "nan.pdb", "AGS", points=points))
    with pytest.raises(DataError, match=r"x\.txt is no structure"):
        read_chain(tmp_path / "x.txt")
    with pytest.raises(DataError, match="cannot be read"):
        read_chain(tmp_path / "missing.pdb")
    (tmp_path / "empty.pdb").write_text("END\n")
    with pytest.raises(DataError, match=r"no atom|cannot be read"):
        read_chain(tmp_path / "empty.pdb")


def test_where_a_chain_is_in_its_sequence(tmp_path):
    whole = read_chain(pdb(tmp_path / "x.pdb", "GSA", numbers=[7, 8, 9]))
    assert places_in(whole, "AAGSAA").tolist() == [2, 3, 4]
    gap = read_chain(pdb(tmp_path / "y.pdb", "GSA", numbers=[7, 9, 10]))
    assert places_in(gap, "AAGASAA").tolist() == [2, 4, 5]
    with pytest.raises(DataError, match=r"3 residues \(GSA\), which do not fit the sequence of 4 \(AAAA\)"):
        places_in(gap, "AAAA")
    with pytest.raises(DataError, match="fit at 2 places"):
        places_in(whole, "GSAGSA")


def looked_up(inputs):
    """A network that looks the rows of a table of 30 vectors up by its input "input_ids"."""
    body = "y = Gather(table, input_ids)" if "input_ids" in inputs else "y = Identity(table)"
    proto = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => (float[n, t, 4] y) {{ {body} }}""")
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((30, 4), np.float32), "table"))
    return Model(graph_model=ir.from_proto(proto))


def test_inputs_of_other_networks():
    names = ("attention_mask", "input_ids", "token_type_ids")
    found = token_input(looked_up(", ".join(f"int64[n, t] {name}" for name in names)), Vocabulary(tokens=ESM))
    assert (found.mask.name, found.tokens.name, found.zeros[0].name) == names
    assert (found.pad, found.vocabulary) == (1, 30)
    assert found.feeds(np.array([[29]]), name="p")["input_ids"] == 29
    with pytest.raises(DataError, match="p has token 30, and the network 30, counted from 0"):
        found.feeds(np.array([[1, 30]]), name="p")
    for inputs in ("float[n, 3] x", "int64[n, t] a, int64[n, t] b"):
        with pytest.raises(ModelError, match="takes tokens"):
            token_input(looked_up(inputs), Vocabulary(tokens=ESM))
