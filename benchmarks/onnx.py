"""What training an ONNX model on the stock onnxruntime costs, beside PyTorch on the same machine.

    --part step     steps a second of a step graph and of torch eager: forward, backward and SGD, in
                    one process, by turns; the models are exported by `onnx_training.from_torch`
    --part memory   peak resident memory of a process that trains, of either kind, one thread
    --part install  a fresh environment with fedmq[edge,onnx-runtime], and one with torch alone
    --part start    from the start of `fedmq agent` to its first update in the outbox, and to the
                    Receipt: bundle and model are fetched over a real broker

torch is installed into .cache/ by this script (benchmarks/peers/requirements-torch.txt), never as a
dependency.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.install import disk_mib
from benchmarks.onnx_start import cold_starts
from benchmarks.peers.environment import ROOT, environment
from benchmarks.report import Aim, Arguments, Report, progress, run

TORCH: Final = (ROOT / "benchmarks" / "peers" / "requirements-torch.txt").read_text().split()
BESIDE: Final = ("onnx", "onnxscript", "onnxruntime", "msgspec", "msgpack")
APP: Final = ROOT / "benchmarks" / "peers" / "torch_app.py"
AIMS: Final = {"mlp": 3.0, "cnn": 0.94}
"""Steps a second over torch's, at least."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one part."""
    parts: dict[str, Callable[[Arguments], Report]] = {
        "step": steps,
        "memory": memory,
        "install": install,
        "start": start,
    }
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--part", choices=parts, default="step")
    part, rest = parser.parse_known_args(argv)
    about = f"ONNX training beside torch: --part {' | '.join(parts)} [{part.part}]"
    return run("onnx", about, parts[part.part], rest)


def steps(arguments: Arguments) -> Report:
    """Steps a second, by turns."""
    python = environment("torch", *TORCH, *BESIDE)
    rounds = 5 if arguments.quick else 25
    report = Report("onnx: step", rounds)
    for threads in (1, 2):
        progress(f"onnx: steps with {threads} threads")
        found = _app(python, "steps", seed=arguments.seed, rounds=rounds, threads=threads)
        for name, times in found["models"].items():
            case = f"{name}, {threads} threads"
            ours, spinning, theirs = (times[who] for who in ("onnx", "spinning", "torch"))
            ratio = median(t / o for o, t in zip(ours, theirs, strict=True))
            report.figures |= {
                f"{case}: us a step": 1e6 * median(ours),
                f"{case}: us a step, spinning": 1e6 * median(spinning),
                f"{case}: us a step, torch": 1e6 * median(theirs),
                f"{case}: over torch's speed": ratio,
                f"{case}: over torch's speed, spinning": median(
                    t / o for o, t in zip(spinning, theirs, strict=True)
                ),
            }
            # torch's threads wait busily: so do ours where there are two of them
            judged = f"{case}: over torch's speed" + (", spinning" if threads > 1 else "")
            if name in AIMS:
                report.aims.append(Aim(judged, report.figures[judged], at_least=AIMS[name]))
        report.notes = [found["versions"], "batch 32; medians of the rounds' minima"]
    return report


def memory(arguments: Arguments) -> Report:
    """Peak resident memory, one process a contender and repeat."""
    python = environment("torch", *TORCH, *BESIDE)
    repeats = 3 if arguments.quick else 7
    report = Report("onnx: memory", repeats)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _app(python, "bundles", seed=arguments.seed, folder=name)
        for model in ("mlp", "cnn"):
            for who in ("onnx", "torch"):
                seen = []
                for number in range(repeats):
                    progress(f"onnx: memory of {model} with {who}, {number + 1} of {repeats}")
                    found = _app(python, f"train-{who}", model=model, folder=str(folder))
                    seen.append(found["peak_kib"] / 1024)
                report.figures[f"{model}, {who}: peak MiB"] = median(seen)
            ours, theirs = (report.figures[f"{model}, {w}: peak MiB"] for w in ("onnx", "torch"))
            report.aims.append(Aim(f"{model}: peak MiB over torch's", ours / theirs, at_most=0.4))
    return report


def install(_arguments: Arguments) -> Report:
    """What either takes on the disk."""
    report = Report("onnx: install", 1)
    contenders = {"fedmq[edge,onnx-runtime]": [f"{ROOT}[edge,onnx-runtime]"], "torch": TORCH}
    for name, packages in contenders.items():
        with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as folder:
            progress(f"onnx: installing {name}")
            venv = Path(folder) / "venv"
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
            empty = disk_mib(venv)
            pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, *packages], check=True, capture_output=True)
            report.figures[f"{name}: MiB"] = disk_mib(venv) - empty
    ours, theirs = report.figures.values()
    report.aims = [Aim("fedmq[edge,onnx-runtime] over torch, MiB", ours / theirs, at_most=0.35)]
    return report


def start(arguments: Arguments) -> Report:
    """Cold starts."""
    repeats = 3 if arguments.quick else 9
    report = Report("onnx: start", repeats)
    report.figures = cold_starts(repeats)
    return report


def _app(python: Path, what: str, **plan: Any) -> dict[str, Any]:
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(plan.get("threads", 1)),
    }
    done = subprocess.run(
        [python, APP, what, json.dumps(plan)],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        progress(done.stderr)
        done.check_returncode()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
