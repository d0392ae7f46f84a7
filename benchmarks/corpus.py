"""Corpus preparation against datatrove and Daft, on the same text: rules, duplicates, what is found, memory, two workers.

    python benchmarks/corpus.py --text FOLDER... (--peer-python PATH | --make-peer-environment FOLDER) [--large] [--write]

Builds a corpus of real text with planted duplicates (corpus_text.py), then runs `fledge corpus` and the peers (corpus_peers.py) in
turns, each in a process of its own on one core, and counts CPU seconds, user and system, with all child processes. What the same
command costs on 60 documents (imports, loading of compiled code, fixed work) is taken off, for all engines alike. `--write` keeps
the figures in benchmarks/results/corpus.json. With --folder the corpora stay, and are used again.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import json
import platform
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import corpus_text
from corpus_text import Corpus, Pair
from processes import ROOT, Bench, Measured, machine, made_environment

PEER_PACKAGES = ("datatrove[processing]==0.10.1", "daft==0.7.26", "spacy==3.8.18", "numpy==2.4.6", "orjson==3.13.0", "xxhash==3.8.2")
SEEDS = (1, 2, 3, 4, 5)
STARTUP_DOCUMENTS = 60
C4_MEGABYTES = 40
AS_IT_COMES_MEGABYTES = 20
FOUND_METHOD = (
    "recall: share of the planted pairs, by Jaccard of their word 5-grams, that end in one cluster; precision: of a sample of the"
    " removed documents, the share whose most similar mate in the cluster is at least so similar; on_own_words: the same pairs, their"
    " similarity on the words that the engine makes of them"
)
BARS = {
    "megabytes of text": 100,
    "planted pairs at 0.7 and more": 2_000,
    "rules and duplicates, datatrove / fledge": 20,
    "duplicates, daft / fledge": 2,
    "recall at 0.8-0.9, mean of five seeds": 0.96,
    "recall at 0.9-1.0, mean of five seeds": 0.999,
    "one worker / two workers, wall seconds": 1.7,
    "megabytes of memory, largest process": 1_000,
}


@dataclass(frozen=True)
class Setting:
    """What is asked of each engine: of Fledge a part of a recipe, of the peers command lines."""

    name: str
    recipe: dict[str, Any]
    peers: dict[str, tuple[str, ...]]
    megabytes: float | None = None
    """Only the first files, with so many megabytes; datatrove would need more than ten minutes for all."""
    rounds: int | None = None
    """Fewer rounds than the others."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="FOLDER")
    peer = parser.add_mutually_exclusive_group()
    peer.add_argument("--peer-python", type=Path, help="a Python that has the peers; without it only Fledge is measured")
    peer.add_argument("--make-peer-environment", type=Path, metavar="FOLDER", help="install the peers into a new environment there")
    parser.add_argument("--megabytes", type=float, default=110, help="of real text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=float, nargs="?", const=1_200, metavar="MEGABYTES", help="memory, and one worker against two")
    parser.add_argument("--folder", type=Path, help="where the corpora are kept")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    made = arguments.make_peer_environment
    peer_python = made_environment(made, PEER_PACKAGES) if made else arguments.peer_python
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        corpus = corpus_text.build(arguments.text, folder / "corpus", arguments.megabytes)
        bench = Bench(peer_python, Path(temporary) / "runs")
        result = {
            "date": datetime.date.today().isoformat(),
            "command": f"python benchmarks/corpus.py --text FOLDER... --make-peer-environment FOLDER --megabytes {arguments.megabytes:g}"
            f" --rounds {arguments.rounds}{' --large' if arguments.large else ''} --write",
            "machine": machine(),
            "versions": {"fledge": _versions(), "peers": bench.ask_peer("versions") if peer_python else {}},
            "corpus": {"text_from": sorted({path.name for path in arguments.text}), **corpus.facts},
            "speed": _speed(bench, corpus, Path(temporary) / "subsets", arguments.rounds),
            "found": _found(bench, corpus, Path(temporary)),
        }
        if arguments.large:
            corpus_text.build_large(corpus, folder / "large", arguments.large)
            result["large"] = _large(bench, folder / "large", arguments.rounds)
    result["bars"] = _bars(result)
    print(json.dumps(result, indent=2))
    _print_tables(result)
    if arguments.write:
        (ROOT / "benchmarks" / "results" / "corpus.json").write_text(json.dumps(result, indent=2) + "\n")


def _settings() -> list[Setting]:
    from fledge.corpus.filters.rules import RULES

    without_c4 = {"preset": "web", "skip": [rule.name for rule in RULES if "web" in rule.presets and rule.name.startswith("c4_")]}
    trove = ("datatrove", "--rules")
    all_rules = (*trove, "gopher+c4+fineweb")
    return [
        Setting("rules and duplicates", {"quality": without_c4}, {"datatrove": (*trove, "gopher+fineweb")}),
        Setting(
            "rules with C4 and duplicates",
            {"quality": {"preset": "web"}},
            {"datatrove": all_rules, "datatrove, sentences by its expression": (*all_rules, "--sentences", "expression")},
            C4_MEGABYTES,
        ),
        Setting("duplicates", {"quality": {"preset": "none"}}, {"daft": ("daft",), "datatrove": (*trove, "none")}),
        Setting("as it comes", {"quality": {"preset": "web"}}, {"datatrove": (*all_rules, "--words", "spacy")}, AS_IT_COMES_MEGABYTES, 1),
    ]


def _speed(bench: Bench, corpus: Corpus, folder: Path, rounds: int) -> dict[str, Any]:
    """CPU seconds of every engine in every setting, in turns."""
    tiny = folder / "tiny"
    tiny.mkdir(parents=True)
    with corpus.files()[0].open("rb") as lines:
        (tiny / "part-000.jsonl").write_bytes(b"".join(itertools.islice(lines, STARTUP_DOCUMENTS)))
    rows = []
    for setting in _settings():
        text = _subset(corpus, folder / setting.name, setting.megabytes)
        engines: dict[str, Callable[[Path], Measured]] = {"fledge": functools.partial(_fledge, bench, setting.recipe)}
        if bench.peer_python is not None:
            engines |= {name: functools.partial(bench.peer, options) for name, options in setting.peers.items()}
        _fledge(bench, setting.recipe, tiny)  # so that all compiled code is in numba's cache
        startups, runs = defaultdict(list), defaultdict(list)
        for _ in range(setting.rounds or rounds):
            for engine, run in engines.items():
                startups[engine].append(run(tiny))
                runs[engine].append(run(text))
        rows += _rows(setting.name, text, startups, runs)
    with tempfile.TemporaryDirectory() as cache:
        recipe = {"quality": {"preset": "web"}}
        compiled = _fledge(bench, recipe, tiny, {"NUMBA_CACHE_DIR": cache}).cpu_seconds - _fledge(bench, recipe, tiny).cpu_seconds
    return {
        "method": f"CPU seconds of the process and its children on one core, medians of {rounds} rounds in turns, less those of the same"
        f" command on {STARTUP_DOCUMENTS} documents (imports, loading of compiled code, fixed work); 'as it comes': one round,"
        " datatrove with spaCy words and its own normalisation; else words are what white space separates on both sides",
        "compilation_cpu_seconds_on_first_use": round(compiled, 1),
        "rows": rows,
    }


def _subset(corpus: Corpus, folder: Path, megabytes: float | None) -> Path:
    """A folder with the first files of the corpus, of so many megabytes, or with all."""
    folder.mkdir(parents=True)
    for path in corpus.files(megabytes):
        (folder / path.name).symlink_to(path.resolve())
    return folder


def _rows(
    setting: str, text: Path, startups: Mapping[str, Sequence[Measured]], runs: Mapping[str, Sequence[Measured]]
) -> list[dict[str, Any]]:
    sizes = [len(row["text"].encode()) for row in corpus_text.read_rows(sorted(text.glob("part-*.jsonl")))]
    megabytes = sum(sizes) / 1e6
    rows: list[dict[str, Any]] = []
    for engine, measured in runs.items():
        whole = statistics.median(one.cpu_seconds for one in measured)
        startup = statistics.median(one.cpu_seconds for one in startups[engine])
        rows.append(
            {
                "setting": setting,
                "engine": engine,
                "text_megabytes": round(megabytes, 1),
                "cpu_seconds": [round(one.cpu_seconds, 2) for one in measured],
                "startup_cpu_seconds": round(startup, 2),
                "cpu_seconds_per_megabyte": round((whole - startup) / megabytes, 5),
                "megabytes_per_cpu_second": round(megabytes / (whole - startup), 2),
                "documents": len(sizes),
                "good": measured[0].told.get("good"),
                "kept": measured[0].told.get("kept", len(sizes) - measured[0].told.get("removed", 0)),
            }
        )
    own = rows[0]
    for row, measured in zip(rows, runs.values(), strict=True):
        row["times_fledge"] = round(row["cpu_seconds_per_megabyte"] / own["cpu_seconds_per_megabyte"], 2)
        ratios = (statistics.median(one.cpu_seconds for one in engine) for engine in (measured, runs["fledge"]))
        row["times_fledge_with_startup"] = round(next(ratios) / next(ratios), 2)
    return rows


def _fledge(bench: Bench, recipe: Mapping[str, Any], text: Path, variables: Mapping[str, str] | None = None) -> Measured:
    """A run of which only the counts are kept."""
    with bench.fledge(text, recipe, variables=variables) as (measured, _):
        counts = measured.told["filters"]["text"]
        return replace(measured, told={"good": counts["kept"]["documents"], "kept": measured.told["rows"]["train"]})


def _found(bench: Bench, corpus: Corpus, folder: Path) -> dict[str, Any]:
    """Recall by similarity over the planted pairs, and precision over what was removed."""
    texts = corpus.texts()
    recalls: dict[int, dict[str, float]] = {}
    mates: list[Pair] = []
    for seed in SEEDS:
        cluster_of, removed = _fledge_clusters(texts, seed)
        with bench.fledge(corpus.folder, {"deduplicate": {"seed": seed}}) as (_, documents):
            _require_same(texts.keys() - removed, documents)
        recalls[seed] = corpus_text.recall(corpus.pairs, cluster_of)
        mates = mates or corpus_text.best_mates(texts, cluster_of, removed)
    own: dict[str, Any] = {
        "recall_mean": {name: round(statistics.mean(one[name] for one in recalls.values()), 4) for name in recalls[SEEDS[0]]},
        "recall_by_seed": recalls,
        "precision": corpus_text.precision(mates),
    }
    found = {"method": FOUND_METHOD, "sampled": len(mates), "fledge": own}
    for engine in ("datatrove", "daft") if bench.peer_python else ():
        file = folder / f"{engine}.json"
        bench.peer((engine, "--clusters", str(file)), corpus.folder)
        told = json.loads(file.read_text())
        pairs, mates = corpus.pairs, corpus_text.best_mates(texts, told["cluster_of"], told["removed"])
        own_pairs, own_mates = (_on_own_words(bench, engine, one, texts, folder) for one in (pairs, mates))
        found[engine] = {
            "removed": len(told["removed"]),
            "recall": corpus_text.recall(pairs, told["cluster_of"]),
            "recall_on_own_words": corpus_text.recall(own_pairs, told["cluster_of"]),
            "precision": corpus_text.precision(mates),
            "precision_on_own_words": corpus_text.precision(own_mates),
        }
    return found


def _fledge_clusters(texts: Mapping[str, str], seed: int) -> tuple[dict[str, int], set[str]]:
    """Cluster of every document, by the functions that the factory calls; and the documents it removes."""
    import numpy as np
    import pyarrow as pa

    from fledge.corpus.dedup.clusters import components, edges
    from fledge.corpus.dedup.settings import DeduplicateSettings
    from fledge.corpus.dedup.signatures import signatures

    found = signatures(pa.array(texts.values(), pa.large_string()), DeduplicateSettings(seed=seed))
    exact = edges([found.exact[:, 0]], 0, 1)
    exact = exact[:, found.exact[exact[0], 1] == found.exact[exact[1], 1]]
    first = components(len(texts), [exact, *(edges([keys], 0, 1) for keys in found.bands)])
    ids = list(texts)
    return dict(zip(ids, first.tolist(), strict=True)), {ids[row] for row in np.flatnonzero(first != np.arange(len(ids)))}


def _require_same(expected: Collection[str], documents: Path) -> None:
    """The clusters that recall is counted on must be those of the corpus that was built."""
    import pyarrow.parquet as pq

    shards = (pq.read_table(path, columns=["id"]) for path in documents.glob("*.parquet"))
    kept = {row_id.partition(":")[2] for shard in shards for row_id in shard["id"].to_pylist()}
    if kept != set(expected):
        raise SystemExit(
            f"The corpus and the clusters differ in {len(kept ^ set(expected)):,} documents; recall would be of something else."
        )


def _on_own_words(bench: Bench, engine: str, pairs: Sequence[Pair], texts: Mapping[str, str], folder: Path) -> list[Pair]:
    """The same pairs, with their similarity on the words that a peer makes of them."""
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps([texts[pair.first], texts[pair.second]]) + "\n" for pair in pairs), encoding="utf-8")
    values = bench.ask_peer("similarity", engine, str(file))["jaccard"]
    return [replace(pair, jaccard=value) for pair, value in zip(pairs, values, strict=True)]


def _large(bench: Bench, corpus_folder: Path, rounds: int) -> dict[str, Any]:
    """Memory, and wall seconds of one and of two workers in turns, both free to use two cores."""
    recipe = _settings()[0].recipe
    runs: dict[int, list[Measured]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, measured in runs.items():
            with bench.fledge(corpus_folder, {**recipe, "workers": workers}, cores=2, watch=True) as (one, _):
                measured.append(one)
    seconds = {workers: statistics.median(one.wall_seconds for one in measured) for workers, measured in runs.items()}
    counts = runs[1][0].told["filters"]["text"]
    return {
        "text_megabytes": round(counts["read"]["utf8_bytes"] / 1e6),
        "documents": counts["read"]["documents"],
        "good": counts["kept"]["documents"],
        "kept": runs[1][0].told["rows"]["train"],
        "wall_seconds": {workers: [round(one.wall_seconds, 1) for one in measured] for workers, measured in runs.items()},
        "cpu_seconds": {workers: [round(one.cpu_seconds, 1) for one in measured] for workers, measured in runs.items()},
        "one_worker_over_two": round(seconds[1] / seconds[2], 2),
        "driver_megabytes": {workers: _most(one.driver_megabytes for one in measured) for workers, measured in runs.items()},
        "worker_megabytes": {workers: _most(one.worker_megabytes for one in measured) for workers, measured in runs.items()},
    }


def _most(megabytes: Iterable[float | None]) -> int | None:
    known = [one for one in megabytes if one is not None]
    return round(max(known)) if known else None


def _bars(result: Mapping[str, Any]) -> dict[str, Any]:
    """Each bar beside what was seen; those that were not measured are left out."""
    ratios = {(row["setting"], row["engine"]): row["times_fledge"] for row in result["speed"]["rows"]}
    recall = result["found"]["fledge"]["recall_mean"]
    large = result.get("large", {})
    memory = [*large.get("driver_megabytes", {}).values(), *large.get("worker_megabytes", {}).values()]
    seen = {
        "megabytes of text": result["corpus"]["text_megabytes"],
        "planted pairs at 0.7 and more": sum(count for name, count in result["corpus"]["planted"].items() if name != "other"),
        "rules and duplicates, datatrove / fledge": ratios.get(("rules and duplicates", "datatrove")),
        "duplicates, daft / fledge": ratios.get(("duplicates", "daft")),
        "recall at 0.8-0.9, mean of five seeds": recall.get("0.8-0.9"),
        "recall at 0.9-1.0, mean of five seeds": recall.get("0.9-1.0"),
        "one worker / two workers, wall seconds": large.get("one_worker_over_two"),
        "megabytes of memory, largest process": max((one for one in memory if one is not None), default=None),
    }
    return {
        name: {"bar": bar, "seen": seen[name], "met": seen[name] <= bar if "memory" in name else seen[name] >= bar}
        for name, bar in BARS.items()
        if seen[name] is not None
    }


def _print_tables(result: Mapping[str, Any]) -> None:
    print(f"\n{'setting':<30}{'engine':<40}{'MB':>7}{'CPU s/MB':>10}{'MB/CPU s':>10}{'x Fledge':>10}{'kept':>9}")
    for row in result["speed"]["rows"]:
        figures = f"{row['cpu_seconds_per_megabyte']:>10.4f}{row['megabytes_per_cpu_second']:>10.1f}{row['times_fledge']:>10.1f}"
        print(f"{row['setting']:<30}{row['engine']:<40}{row['text_megabytes']:>7}{figures}{row['kept']:>9,}")
    print()
    for name, bar in result["bars"].items():
        print(f"{name:<50}{bar['seen']:>10} (bar: {bar['bar']}) {'met' if bar['met'] else 'MISSED'}")


def _versions() -> dict[str, str]:
    names = ("fledge", "numba", "numpy", "pyarrow", "orjson")
    return {name: metadata.version(name) for name in names} | {"python": platform.python_version()}


if __name__ == "__main__":
    main()
