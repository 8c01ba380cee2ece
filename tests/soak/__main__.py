"""Very much work at once, and what stays behind: memory, descriptors, tasks, files, jobs bought twice, jobs lost.

`python -m tests.soak` runs all parts, `python -m tests.soak jobs` one of them. `jobs`: 30,000 jobs at the highest pace
of the machine, with the emulator in a process of its own, on a ledger in a file and on one in memory; a twentieth of
all requests goes wrong. `rows`: a ledger of 100,000 rows. `steady`: an hour of virtual time. The exit code is 1 when
something grew, was bought twice or was lost.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tests.durability.emulator_process import AccountSettings, Records, opened
from tests.soak import buying, rows
from tests.soak.readings import Reading, growth

ROOT = Path(__file__).absolute().parents[2]

FAULTY = AccountSettings(job_limit=None, lost=0.02, failing=0.028, throttled=0.002, slow=0.0, median_s=buying.JOB_S)

# A 429 keeps all creates back for half a second, since nothing is learned here: more of them would only make it longer.

# What may grow. The heap of a process that works on and on breaks up by some hundred KB. One object left of each job
# would be 1,000 blocks.
MAX_RSS_KB_PER_1000 = 150.0
MAX_BLOCKS_PER_1000 = 500.0
MAX_WAL_KB = 16 * 1024
MAX_BYTES_PER_JOB = 10.0


def bought(jobs: int, folder: Path, *, on_disk: bool) -> dict[str, Any]:
    """Buy so many jobs; return the figures."""
    results, ledger = folder / "results", folder / "jobs.sqlite" if on_disk else None
    with opened(FAULTY) as emulator:
        orders = buying.Orders(
            url=emulator.url,
            jobs=jobs,
            results=str(results),
            ledger=None if ledger is None else str(ledger),
            every=max(1, jobs // 60),
        )
        run = _run_module("buying", json.dumps(asdict(orders)))
        records = emulator.records()
    before, *during, after = (Reading(**each) for each in (run["before"], *run["during"], run["after"]))
    done = [each.done for each in during]
    per_1000 = {
        name: 1000 * growth(done, [getattr(each, name) for each in during])
        for name in ("rss_kb", "blocks", "descriptors", "tasks")
    }
    figures = {
        "ledger": "SQLite" if on_disk else "memory",
        "jobs": jobs,
        "jobs a second": jobs / run["seconds"],
        "RSS half-way and at the end, MB": [during[len(during) // 2].rss_kb / 1024, during[-1].rss_kb / 1024],
        "RSS, KB per 1,000 jobs": per_1000["rss_kb"],
        "blocks of memory per 1,000 jobs": per_1000["blocks"],
        "descriptors at most, and per 1,000 jobs": [max(each.descriptors for each in during), per_1000["descriptors"]],
        "tasks at most, and per 1,000 jobs": [max(each.tasks for each in during), per_1000["tasks"]],
        "left when it was closed": {
            "descriptors": after.descriptors - before.descriptors,
            "tasks": after.tasks - before.tasks,
        },
        "-wal file at most, KB": max(each.wal_kb for each in during),
        **records.counts,
        **_accounts(jobs, results, records),
    }
    return {**figures, "breaches": list(_breaches(figures))}


def _accounts(jobs: int, results: Path, records: Records) -> dict[str, Any]:
    """Compare what the gateway charged with what the client got."""
    with results.open(encoding="utf-8") as lines:
        got = dict(json.loads(line) for line in lines)
    charged = {prompt: each.task_ids for prompt, each in records.prompts.items() if each.task_ids}
    errors = Counter(got[prompt] for prompt in got if got[prompt] not in charged.get(prompt, ()))
    return {
        "rows bought twice": sum(len(task_ids) > 1 for task_ids in charged.values()),
        "rows lost": jobs - len(got) + sum(got.get(prompt) not in task_ids for prompt, task_ids in charged.items()),
        "rows without a result": dict(errors),
    }


def _breaches(figures: Mapping[str, Any]) -> list[str]:
    limits = {
        "RSS, KB per 1,000 jobs": MAX_RSS_KB_PER_1000,
        "blocks of memory per 1,000 jobs": MAX_BLOCKS_PER_1000,
        "-wal file at most, KB": MAX_WAL_KB,
        "rows bought twice": 0,
        "rows lost": 0,
    }
    found = [f"{name}: {figures[name]:.1f}, at most {limit}" for name, limit in limits.items() if figures[name] > limit]
    found += [f"{count} {name} left" for name, count in figures["left when it was closed"].items() if count]
    found += [f"{count} rows ended with {name}" for name, count in figures["rows without a result"].items()]
    return found


def listed(count: int, folder: Path) -> dict[str, Any]:
    """Fill a ledger with so many rows, and measure what is done with it; return the figures."""
    path = folder / "rows.sqlite"
    _run_module("rows", str(path), str(count), answers=False)
    figures = _run_module("rows", str(path))
    figures["`nanobanana jobs --limit 50`, s"] = rows.command_s(path)
    expected = Counter(rows.state_of(number).name for number in range(count))
    expected["SUCCEEDED"] += expected.pop("RUNNING")
    found = [f"by state {figures['by state']}, not {dict(expected)}"] if figures["by state"] != expected else []
    return {**figures, "breaches": found}


def worked(seconds: float) -> dict[str, Any]:
    """Work for so long on virtual time; return the figures."""
    figures = _run_module("steady", json.dumps({"seconds": seconds}))
    grows = figures["bytes_per_job"] > MAX_BYTES_PER_JOB
    breaches = [f"{figures['bytes_per_job']:.1f} bytes per job, at most {MAX_BYTES_PER_JOB}"] if grows else []
    return {**figures, "breaches": breaches}


def _run_module(name: str, *arguments: str, answers: bool = True) -> dict[str, Any]:
    """Run a module in a process of its own, so that it holds nothing of the others; return what it prints."""
    command = [sys.executable, "-m", f"tests.soak.{name}", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout) if answers else {}
    return answer


def _text(figures: Mapping[str, Any]) -> str:
    def shown(value: object) -> str:
        match value:
            case float():
                return f"{value:.2f}"
            case dict():
                return ", ".join(f"{name} {shown(each)}" for name, each in value.items()) or "none"
            case list():
                return "; ".join(map(shown, value)) or "none"
            case _:
                return str(value)

    width = max(map(len, figures))
    return "\n".join(f"{name:<{width}}  {shown(value)}" for name, value in figures.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("parts", nargs="*", default=["jobs", "rows", "steady"], help="jobs, rows or steady")
    parser.add_argument("--jobs", type=int, default=30_000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of virtual time, for steady")
    chosen = parser.parse_args(arguments)
    parts: dict[str, list[Callable[[Path], dict[str, Any]]]] = {
        "jobs": [partial(bought, chosen.jobs, on_disk=on_disk) for on_disk in (True, False)],
        "rows": [partial(listed, chosen.rows)],
        "steady": [lambda _: worked(chosen.seconds)],
    }
    if unknown := set(chosen.parts) - set(parts):
        parser.error(f"no part is named {', '.join(sorted(unknown))}: choose from {', '.join(parts)}")
    broken = False
    for part in chosen.parts:
        for measure in parts[part]:
            with tempfile.TemporaryDirectory(prefix="nanobanana-") as folder:
                figures = measure(Path(folder))
            print(f"{_text({'part': part, **figures})}\n", flush=True)
            broken = broken or bool(figures["breaches"])
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
