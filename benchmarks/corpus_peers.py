"""What `benchmarks/corpus.py` runs of others: datatrove and Daft, by the Python of an environment of their own.

    python corpus_peers.py datatrove INPUT OUTPUT [--rules ...] [--words ...] [--sentences ...] [--clusters FILE] [--seed N]
    python corpus_peers.py daft INPUT OUTPUT [--clusters FILE] [--seed N]
    python corpus_peers.py similarity ENGINE PAIRS
    python corpus_peers.py versions

INPUT is a folder of JSON Lines with `id` and `text`. Each pipeline is the fastest that the engine's own parts gave on trials, in the
engine's favour where there was a choice: one task, plain JSON Lines in between, only the fields that are needed. The last line on
standard output is JSON. `--clusters` writes who is in one cluster with whom, for recall and precision; it is not part of timed runs.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

BANDS, ROWS, SHINGLE_WORDS = 14, 8, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True)
    trove = actions.add_parser("datatrove")
    trove.add_argument("--rules", choices=("none", "gopher+fineweb", "gopher+c4+fineweb"), default="none")
    trove.add_argument("--words", choices=("whitespace", "spacy"), default="whitespace")
    trove.add_argument("--sentences", choices=("spacy", "expression"), default="spacy")
    for one, run in ((trove, run_datatrove), (actions.add_parser("daft"), run_daft)):
        one.add_argument("input", type=Path)
        one.add_argument("output", type=Path)
        one.add_argument("--clusters", type=Path)
        one.add_argument("--seed", type=int, default=1)
        one.set_defaults(run=run)
    similarity = actions.add_parser("similarity")
    similarity.add_argument("engine", choices=("datatrove", "daft"))
    similarity.add_argument("pairs", type=Path)
    similarity.set_defaults(run=run_similarity)
    actions.add_parser("versions").set_defaults(run=run_versions)
    arguments = parser.parse_args()
    print(json.dumps(arguments.run(arguments)))


def run_datatrove(arguments: argparse.Namespace) -> dict[str, Any]:
    """The rules, then the four stages of MinHash, as far as asked for; rules and signatures share one reading."""
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    if arguments.words == "whitespace":
        _split_at_whitespace(arguments.sentences)
    given, output, with_ids = arguments.input, arguments.output, arguments.clusters is not None
    signatures, buckets, clusters = (str(output / name) for name in ("signatures", "buckets", "clusters"))
    config = MinhashConfig(SHINGLE_WORDS, BANDS, ROWS, arguments.seed, _normalisation(arguments.words))

    def reader(folder: Path) -> Any:
        return JsonlReader(str(folder), glob_pattern="*.jsonl", add_file_path=False)

    def writer(folder: Path) -> Any:
        return JsonlWriter(str(folder), output_filename="${rank}.jsonl", compression=None, adapter=_text_and_id)

    first: list[Any] = [reader(given), *_rules(arguments.rules)]
    if arguments.rules != "none":
        given = output / "good"
        first.append(writer(given))
    counts = _executed([*first, MinhashDedupSignature(signatures, config)], output / "logs" / "1")
    _executed([MinhashDedupBuckets(signatures, buckets, config=config)], output / "logs" / "2", tasks=BANDS)
    _executed([MinhashDedupCluster(buckets, clusters, config, save_cluster_id=with_ids)], output / "logs" / "3")
    last = _executed([reader(given), MinhashDedupFilter(clusters), writer(output / "kept")], output / "logs" / "4")
    if with_ids:
        _write_datatrove_clusters(given, output, arguments.clusters)
    return {"good": last["read"], "kept": last["written"], "dropped": counts["dropped"]}


def run_daft(arguments: argparse.Namespace) -> dict[str, Any]:
    """MinHash by Daft's expression, bands by the hash of eight values, groups of equal bands; all that is not kept goes by an anti-join.

    Clusters come from a union-find in Python over the groups that Daft returns. Alternating stars in Daft itself, as its
    documentation shows, cost 0.03 s more on 9 MB (0.26 s). No NFD, as Fledge does none; punctuation is deleted, not made a space.
    """
    import daft
    from daft import DataType, col
    from daft.functions import chunk, hash, length, list_map, minhash, normalize

    documents = daft.read_json(str(arguments.input / "*.jsonl")).select("id", "text").with_column("node", hash(col("id")))
    plain = normalize(col("text"), remove_punct=True, lowercase=True, white_space=True)
    signature = minhash(plain, num_hashes=BANDS * ROWS, ngram_size=SHINGLE_WORDS, seed=arguments.seed, hash_function="xxhash")
    keys = list_map(chunk(signature, ROWS), hash(daft.element()))
    bands = documents.select("node", keys.alias("key")).with_column("band", daft.lit(list(range(BANDS)))).explode("key", "band")
    groups = bands.groupby("band", "key").agg(col("node").list_agg().alias("nodes")).where(length(col("nodes")) > 1)
    first_of = _united(groups.select("nodes").to_pydict()["nodes"])
    dropped = [node for node, first in first_of.items() if node != first]
    gone = daft.from_pydict({"node": dropped}).select(col("node").cast(DataType.uint64()))
    documents.join(gone, on="node", how="anti").select("id", "text").write_parquet(str(arguments.output), compression="zstd")
    if arguments.clusters is not None:
        known = documents.select("id", "node").to_pydict()
        cluster_of = {row_id: first_of[node] for row_id, node in zip(known["id"], known["node"], strict=True) if node in first_of}
        removed = [row_id for row_id, node in zip(known["id"], known["node"], strict=True) if first_of.get(node, node) != node]
        arguments.clusters.write_text(json.dumps({"cluster_of": cluster_of, "removed": removed}))
    return {"removed": len(dropped)}


def run_similarity(arguments: argparse.Namespace) -> dict[str, Any]:
    """Jaccard coefficients of pairs of texts on the words that the engine makes of them itself."""
    pairs = list(_lines(arguments.pairs))
    normalised = _datatrove_words if arguments.engine == "datatrove" else _daft_words
    words = normalised([text for pair in pairs for text in pair])
    sets = [frozenset(zip(*(one[start:] for start in range(SHINGLE_WORDS)), strict=False)) for one in words]
    return {"jaccard": [len(a & b) / max(len(a | b), 1) for a, b in zip(sets[::2], sets[1::2], strict=True)]}


def _rules(name: str) -> list[Any]:
    """As FineWeb's own pipeline has them: in this order, and C4 without the rule on terminal punctuation."""
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter

    c4 = [C4QualityFilter(filter_no_terminal_punct=False)] if "c4" in name else []
    return [] if name == "none" else [GopherRepetitionFilter(), GopherQualityFilter(), *c4, FineWebQualityFilter()]


def _executed(pipeline: list[Any], logs: Path, tasks: int = 1) -> dict[str, Any]:
    """Run tasks one after another in this process; returns how many documents came in, went out, and were dropped for which reason."""
    from datatrove.executor import LocalPipelineExecutor

    found = LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=1, logging_dir=str(logs)).run().stats
    dropped = {
        name.removeprefix("dropped_"): int(value.total)
        for step in found
        for name, value in step.stats.items()
        if name.startswith("dropped_")
    }
    return {"read": int(found[0].stats["documents"].total), "written": int(found[-1].stats["total"].total), "dropped": dropped}


def _text_and_id(_: Any, document: Any) -> dict[str, str]:
    return {"text": document.text, "id": document.id}


def _split_at_whitespace(sentences: str) -> None:
    """Words are what white space separates, in all filters and in MinHash; sentences come from spaCy or datatrove's own expression."""
    from datatrove.pipeline.dedup import minhash
    from datatrove.utils import word_tokenizers

    known = word_tokenizers.load_word_tokenizer("eng") if sentences == "spacy" else word_tokenizers.WhitespaceTokenizer()

    class Words(word_tokenizers.WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return known.sent_tokenize(text)

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return known.span_tokenize(text)

    one = Words()
    word_tokenizers.load_word_tokenizer = minhash.load_word_tokenizer = lambda _: one


def _write_datatrove_clusters(given: Path, output: Path, target: Path) -> None:
    """Cluster of every document that is in one, by id, and which were removed."""
    import numpy as np

    ids = [row["id"] for row in _rows(given)]
    clusters = np.fromfile(output / "clusters" / "000000.clusters", np.uint32).reshape(-1, 2)
    removed = np.fromfile(output / "clusters" / "000000.remove", np.uint32)
    cluster_of = {ids[number]: int(cluster) for number, cluster in clusters.tolist()}
    target.write_text(json.dumps({"cluster_of": cluster_of, "removed": [ids[number] for number in removed.tolist()]}))


def _united(groups: list[list[int]]) -> dict[int, int]:
    """The smallest member of the cluster of everything that is in a group."""
    parent: dict[int, int] = {}

    def first(node: int) -> int:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for group in groups:
        for other in group[1:]:
            one, two = sorted((first(group[0]), first(other)))
            parent[two] = one
    return {node: first(node) for node in list(parent)}


def _normalisation(words: str) -> Any:
    """With words at white space, what Fledge does too: lower case, no punctuation. As it comes, numbers become 0 and accents go as well."""
    from datatrove.utils.text import TextNormConfig

    same = words == "whitespace"
    return TextNormConfig(norm_numbers=not same, norm_unicode_diacritics=not same)


def _datatrove_words(texts: list[str]) -> list[list[str]]:
    from datatrove.utils.text import simplify_text

    return [simplify_text(text, _normalisation("whitespace")).split() for text in texts]


def _daft_words(texts: list[str]) -> list[list[str]]:
    import daft
    from daft import col
    from daft.functions import normalize

    plain = normalize(col("text"), remove_punct=True, lowercase=True, nfd_unicode=True, white_space=True)
    return [text.split() for text in daft.from_pydict({"text": texts}).select(plain.alias("text")).to_pydict()["text"]]


def _rows(folder: Path) -> Iterable[dict[str, Any]]:
    return (row for path in sorted(folder.glob("*.jsonl")) for row in _lines(path))


def _lines(path: Path) -> Iterable[Any]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def run_versions(_: argparse.Namespace) -> dict[str, str]:
    """What is installed here."""
    names = ("datatrove", "daft", "spacy", "xxhash", "numpy")
    return {name: metadata.version(name) for name in names} | {"python": platform.python_version()}


if __name__ == "__main__":
    main()
