"""Tokenizers: our pack stage against datasets.map, datatrove and tiktoken on the same text; what SuperBPE gains; what training costs.

    python benchmarks/tokenizers.py --text FOLDER... (--peer-python PATH | --make-peer-environment FOLDER) [--write]

Takes real text (corpus_text.py) without the near-duplicates planted in it, as document shards; every 50th document is held out. Trains
byte-level BPE of 32,768 and 65,536 tokens and SuperBPE on top, then packs in turns with the peers (tokenizers_peers.py), each in a
process of its own on one core, and counts CPU seconds with all child processes, less those of the same command on a few documents.
`--write` keeps the figures in benchmarks/results/tokenizers.json. With --folder the text and the tokenizers stay, and are used again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpus_text
from processes import ROOT, Bench, Measured, machine, made_environment

OWN = Path(__file__).with_name("tokenizers_own.py")
PEERS = Path(__file__).with_name("tokenizers_peers.py")
PEER_PACKAGES = ("datasets==5.2.0", "datatrove[processing]==0.10.1", "tiktoken==0.14.0", "tokenizers==0.23.3", "numpy==2.4.6")
HELD_OUT_EVERY = 50
STARTUP_DOCUMENTS = 60
SHARD_DOCUMENTS = 4_000
TRANSITIONS = {32_768: 0.75, 65_536: 0.7}
"""Share of the vocabulary at which superwords begin; at these sizes the best of a few tried."""
ONE_THREAD = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
BARS = {
    "megabytes of text": 50,
    "byte-level BPE with gigatoken, times datasets.map": 20,
    "byte-level BPE without gigatoken, times datasets.map": 5,
    "SuperBPE with gigatoken, times datasets.map": 10,
    "SuperBPE of 32,768: % more characters per token": 10,
    "SuperBPE of 65,536: % more characters per token": 15,
    "CPU seconds of training 32,768 tokens on 100 MB": 60,
    "megabytes of memory of training 32,768 tokens on 100 MB": 2_000,
}


@dataclass(frozen=True)
class Engine:
    """One way to come from document shards to ids on disk."""

    name: str
    command: tuple[str, ...]
    """Of the script; corpus, tokenizer and target folder follow its first word."""
    tokenizer: Path
    rounds: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="FOLDER")
    peer = parser.add_mutually_exclusive_group()
    peer.add_argument("--peer-python", type=Path, help="a Python that has the peers; without it only Fledge is measured")
    peer.add_argument("--make-peer-environment", type=Path, metavar="FOLDER", help="install the peers into a new environment there")
    parser.add_argument("--megabytes", type=float, default=100, help="of real text, to train on")
    parser.add_argument("--pack-megabytes", type=float, default=52, help="of it, to pack")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where text and tokenizers are kept")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    made = arguments.make_peer_environment
    peer_python = made_environment(made, PEER_PACKAGES) if made else arguments.peer_python
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        bench = Bench(peer_python, Path(temporary) / "runs")
        corpora = _corpora(arguments.text, folder, arguments.megabytes, arguments.pack_megabytes)
        trained = _trained(bench, corpora["all"], folder)
        result = {
            "date": datetime.date.today().isoformat(),
            "command": f"python benchmarks/tokenizers.py --text FOLDER... --make-peer-environment FOLDER --rounds {arguments.rounds}",
            "machine": machine(),
            "versions": {"fledge": _own(bench, "versions").told, "peers": _peer(bench, "versions").told if peer_python else {}},
            "text": {name: json.loads((path / "facts.json").read_text()) for name, path in corpora.items()},
            "training": trained,
            "compression": _compression(bench, corpora["all"], folder),
            "speed": _speed(bench, corpora, _engines(bench, folder, arguments.rounds)),
        }
    result["bars"] = _bars(result)
    print(json.dumps(result, indent=2))
    _print_tables(result)
    if arguments.write:
        (ROOT / "benchmarks" / "results" / "tokenizers.json").write_text(json.dumps(result, indent=2) + "\n")


def _corpora(text_folders: Sequence[Path], folder: Path, megabytes: float, pack_megabytes: float) -> dict[str, Path]:
    """Document shards of all the text, of the part that is packed, and of a few documents; made if they are not there."""
    corpora = {name: folder / f"documents-{name}" for name in ("all", "packed", "few")}
    if not (corpora["few"] / "facts.json").exists():
        corpus = corpus_text.build(text_folders, folder / "corpus", megabytes * 1.12)
        planted = {pair.second for pair in corpus.pairs}
        rows = (row for row in corpus_text.read_rows(corpus.files()) if row["id"] not in planted)
        texts = [row["text"] for row in _until(rows, megabytes * 1e6)]
        _write_documents(corpora["all"], texts, HELD_OUT_EVERY)
        packed = [row["text"] for row in _until(({"text": text} for text in texts), pack_megabytes * 1e6)]
        _write_documents(corpora["packed"], packed)
        _write_documents(corpora["few"], texts[:STARTUP_DOCUMENTS])
    return corpora


def _until(rows: Iterable[dict[str, Any]], size_bytes: float) -> Iterable[dict[str, Any]]:
    for row in rows:
        if size_bytes <= 0:
            return
        size_bytes -= len(row["text"].encode())
        yield row


def _write_documents(folder: Path, texts: Sequence[str], held_out_every: int | None = None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    held_out = set(range(0, len(texts), held_out_every)) if held_out_every else set()
    folder.mkdir(parents=True)
    for split, places in (("train", [place for place in range(len(texts)) if place not in held_out]), ("validation", sorted(held_out))):
        for number, start in enumerate(range(0, len(places), SHARD_DOCUMENTS)):
            part = places[start : start + SHARD_DOCUMENTS]
            columns = {"text": [texts[place] for place in part], "id": [str(place) for place in part]}
            rows = {**columns, "source": ["text"] * len(part), "group": columns["id"]}
            pq.write_table(pa.table(rows), folder / f"{split}-{number:05d}.parquet", compression="zstd")
    facts = {"documents": len(texts), "megabytes": round(sum(len(text.encode()) for text in texts) / 1e6, 2), "held_out": len(held_out)}
    (folder / "facts.json").write_text(json.dumps(facts))


def _trained(bench: Bench, corpus: Path, folder: Path) -> list[dict[str, Any]]:
    """Train what is not there; CPU seconds and memory of each training, with reading the documents."""
    file = folder / "training.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    for size, transition in TRANSITIONS.items():
        plain, superwords = folder / f"bpe-{size}", folder / f"superbpe-{size}"
        steps = (("byte-level BPE", plain, ()), ("SuperBPE, both levels", superwords, ("--transition", str(transition))))
        for name, target, options in steps:
            if not target.exists():
                one = _own(bench, "train", str(corpus), str(target), "--vocabulary-size", str(size), *options, watch=True)
                memory = None if one.driver_megabytes is None else round(one.driver_megabytes)
                rows.append({"what": name, "vocabulary_size": size, "cpu_seconds": round(one.cpu_seconds, 1), "memory_megabytes": memory})
                file.write_text(json.dumps(rows))
    return rows


def _compression(bench: Bench, corpus: Path, folder: Path) -> list[dict[str, Any]]:
    """Characters per token of the held-out documents."""
    rows = []
    for size, transition in TRANSITIONS.items():
        rates = {}
        for kind in ("bpe", "superbpe"):
            told = _own(bench, "count", str(corpus), str(folder / f"{kind}-{size}")).told
            rates[kind] = told["characters"] / told["tokens"]
        gain = 100 * (rates["superbpe"] / rates["bpe"] - 1)
        row = {"vocabulary_size": size, "transition": transition, "characters": told["characters"], "superbpe_gain_percent": round(gain, 2)}
        rows.append({**row, **{f"{kind}_characters_per_token": round(rate, 4) for kind, rate in rates.items()}})
    return rows


def _engines(bench: Bench, folder: Path, rounds: int) -> list[Engine]:
    plain, superwords = (folder / f"{kind}-32768" for kind in ("bpe", "superbpe"))
    own = [
        Engine("fledge", ("pack",), plain, rounds),
        Engine("fledge without gigatoken", ("pack", "--without", "gigatoken"), plain, rounds),
        Engine("fledge, SuperBPE", ("pack",), superwords, rounds),
        Engine("fledge without gigatoken, SuperBPE", ("pack", "--without", "gigatoken"), superwords, rounds),
    ]
    peers = [
        Engine("datasets.map", ("datasets",), plain, min(rounds, 2)),
        Engine("datatrove", ("datatrove",), plain, 1),
        Engine("tiktoken as in nanochat", ("tiktoken",), plain, min(rounds, 2)),
        Engine("datasets.map, SuperBPE", ("datasets",), superwords, 1),
    ]
    return own + (peers if bench.peer_python else [])


def _speed(bench: Bench, corpora: dict[str, Path], engines: Sequence[Engine]) -> dict[str, Any]:
    """CPU seconds of every engine, in turns."""
    runs: defaultdict[str, list[Measured]] = defaultdict(list)
    startups: defaultdict[str, list[Measured]] = defaultdict(list)
    for engine in engines[:4]:
        _packed(bench, engine, corpora["few"])  # so that all compiled code is in numba's cache
    for number in range(max(engine.rounds for engine in engines)):
        for engine in engines:
            if number < engine.rounds:
                startups[engine.name].append(_packed(bench, engine, corpora["few"]))
                runs[engine.name].append(_packed(bench, engine, corpora["packed"]))
    megabytes = json.loads((corpora["packed"] / "facts.json").read_text())["megabytes"]
    rows = []
    for name, measured in runs.items():
        whole, startup = (statistics.median(one.cpu_seconds for one in group) for group in (measured, startups[name]))
        rows.append(
            {
                "engine": name,
                "cpu_seconds": [round(one.cpu_seconds, 2) for one in measured],
                "startup_cpu_seconds": round(startup, 2),
                "megabytes_per_cpu_second": round(megabytes / (whole - startup), 2),
                "megabytes_per_cpu_second_with_startup": round(megabytes / whole, 2),
                "chosen": measured[0].told.get("engine_by_source"),
            }
        )
    return {
        "method": f"read Parquet shards, encode, write ids; CPU seconds of the process and its children on one core, medians, less those of"
        f" the same command on {STARTUP_DOCUMENTS} documents; one to {max(engine.rounds for engine in engines)} rounds in turns",
        "rows": rows,
    }


def _packed(bench: Bench, engine: Engine, corpus: Path) -> Measured:
    first, *rest = engine.command
    with bench.fresh() as place:
        run = _own if first == "pack" else _peer
        tokenizer = engine.tokenizer if run is _own else engine.tokenizer / "tokenizer.json"
        return run(bench, first, str(corpus), str(tokenizer), str(place / "out"), *rest)


def _own(bench: Bench, *arguments: str, watch: bool = False) -> Measured:
    return bench.measured([sys.executable, "-P", str(OWN), *arguments], 1, {"PYTHONPATH": str(ROOT), **ONE_THREAD}, watch)


def _peer(bench: Bench, *arguments: str) -> Measured:
    return bench.measured([str(bench.peer_python), "-P", str(PEERS), *arguments], 1, ONE_THREAD, watch=False)


def _bars(result: dict[str, Any]) -> dict[str, Any]:
    """Each bar beside what was seen; those that were not measured are left out."""
    rates = {row["engine"]: row["megabytes_per_cpu_second"] for row in result["speed"]["rows"]}
    gains = {row["vocabulary_size"]: row["superbpe_gain_percent"] for row in result["compression"]}
    training = next((row for row in result["training"] if row["vocabulary_size"] == 32_768 and row["what"] == "byte-level BPE"), {})

    def ratio(own: str, peer: str) -> float | None:
        return round(rates[own] / rates[peer], 2) if peer in rates else None

    seen = {
        "megabytes of text": result["text"]["packed"]["megabytes"],
        "byte-level BPE with gigatoken, times datasets.map": ratio("fledge", "datasets.map"),
        "byte-level BPE without gigatoken, times datasets.map": ratio("fledge without gigatoken", "datasets.map"),
        "SuperBPE with gigatoken, times datasets.map": ratio("fledge, SuperBPE", "datasets.map, SuperBPE"),
        "SuperBPE of 32,768: % more characters per token": gains[32_768],
        "SuperBPE of 65,536: % more characters per token": gains[65_536],
        "CPU seconds of training 32,768 tokens on 100 MB": training.get("cpu_seconds"),
        "megabytes of memory of training 32,768 tokens on 100 MB": training.get("memory_megabytes"),
    }
    return {
        name: {"bar": bar, "seen": seen[name], "met": seen[name] <= bar if "training" in name else seen[name] >= bar}
        for name, bar in BARS.items()
        if seen[name] is not None
    }


def _print_tables(result: dict[str, Any]) -> None:
    print(f"\n{'engine':<40}{'CPU s':>10}{'MB/CPU s':>10}{'with start':>12}")
    for row in result["speed"]["rows"]:
        rates = f"{row['megabytes_per_cpu_second']:>10.1f}{row['megabytes_per_cpu_second_with_startup']:>12.1f}"
        print(f"{row['engine']:<40}{statistics.median(row['cpu_seconds']):>10.2f}{rates}")
    print()
    for name, bar in result["bars"].items():
        print(f"{name:<60}{bar['seen']:>10} (bar: {bar['bar']}) {'met' if bar['met'] else 'MISSED'}")


if __name__ == "__main__":
    main()
