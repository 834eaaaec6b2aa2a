r"""Train a list of variants with every seed, some or one at a time, and gather one table.

    python -m cxr_jax.sweep --config=configs/NAME.py --variants='quick;quick,pool=mean' \
        --seeds=0,1,2 --output=SWEEP --config.optimizer.lr=0.01
    python -m cxr_jax.sweep --list=LIST.toml --output=SWEEP     rows with names; docs/commands.md
    python -m cxr_jax.sweep --list=LIST.toml --output=SWEEP --dry     the commands, in order
    python -m cxr_jax.sweep --list=LIST.toml --output=SWEEP --run=7   that one alone, of a cluster's
    python -m cxr_jax.sweep --list=LIST.toml --output=SWEEP --waves   array job: launch/sweep.sh

A run is `python -m cxr_jax.main` in SWEEP/NAME/seed-K, with what it says in log.txt there. The same
command again skips what is finished and resumes what is not. --config.FIELD=VALUE changes a field
of every row. After each run SWEEP/table.md and SWEEP/table.csv are written anew; at the end with
what needs no model beside them (a constant, a bound), where the tasks name such.
"""

import argparse
import collections
import contextlib
import dataclasses
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence, Set

from cxr_jax import safe_write, small_files, sweep_references, sweep_table
from cxr_jax import workdir as workdirs
from cxr_jax.checkpoints import StopSignal
from cxr_jax.cli import Parser, run_command
from cxr_jax.errors import InputError, one_line
from cxr_jax.sweep_rows import Plan, Run, from_variants, make_runs, read_list, same_rows

LOG = "log.txt"
_TAIL = 8192  # bytes of a log in which its last line is looked for


def main() -> int:
    args, overrides = _arguments(sys.argv[1:])
    # Nothing is computed here: an accelerator is left to the runs.
    import jax

    jax.config.update("jax_platforms", "cpu")
    plan = _plan(args, overrides)
    runs = make_runs(plan, args.output, split=args.split)
    if args.jobs < 1:
        raise InputError(f"--jobs={args.jobs}; expected 1 or more")
    told = {"split": args.split, "metrics": plan.metrics, "jobs": args.jobs}
    sweep = Sweep(runs, output=args.output, alone=not (args.run or args.waves), **told)
    if args.waves:
        print("\n".join(waves(runs, {run.key for run in sweep.done})))
        return 0
    if args.run:
        return _run_one(sweep, runs, args)
    if args.dry:
        for run in runs:
            done = "   # done already" if run in sweep.done else ""
            print(f"{shlex.join(run.command)}{done}")
        return 0
    for line in same_rows(runs):
        print(line, flush=True)
    safe_write.make_folder(args.output, "--output")
    with StopSignal() as stop:
        status = sweep(stop)
    print(f"\n{sweep.write_whole()}\n{args.output}: table.md, table.csv, NAME/seed-K/")
    if status:
        again = shlex.join(["python", "-m", "cxr_jax.sweep", *sys.argv[1:]])
        print(f"{len(sweep.done)} of {len(runs)} runs are done; to go on: {again}")
    return status


def _run_one(sweep: "Sweep", runs: Sequence[Run], args: argparse.Namespace) -> int:
    """Trains a run of an array job; the exit status."""
    if not 1 <= args.run <= len(runs):
        raise InputError(f"--run={args.run}; the list has the runs 1 to {len(runs)}")
    if args.dry:
        print(shlex.join(runs[args.run - 1].command))
        return 0
    safe_write.make_folder(args.output, "--output")
    with StopSignal() as stop:
        return sweep(stop, only=args.run)


def waves(runs: Sequence[Run], done: Set[tuple[str, int]]) -> list[str]:
    """What can be trained at the same time, wave after wave, as numbers of runs: '1-3,7'.

    Args:
      runs: in the order of the list.
      done: keys of those that are left out.
    """
    when: dict[tuple[str, int], int] = {}
    found: dict[int, list[int]] = {}
    for number, run in enumerate(runs, 1):
        if run.key not in done:
            before = [when.get((name, run.seed), 0) for name in run.needs]
            when[run.key] = 1 + max(before, default=0)
            found.setdefault(when[run.key], []).append(number)
    return [_ranges(found[wave]) for wave in sorted(found)]


def _ranges(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] -> '1-3,7'."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """The flags, and the overrides of every row."""
    parser = Parser(
        prog="python -m cxr_jax.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=pathlib.Path, required=True, help="the sweep's folder")
    parser.add_argument("--config", default="", help="configs/NAME.py")
    parser.add_argument("--variants", help="of --config, with ; between them")
    parser.add_argument("--list", type=pathlib.Path, help="a TOML file of rows")
    parser.add_argument("--seeds", help="e.g. 0,1,2; default: those of the list, or 0")
    parser.add_argument("--metrics", help="columns, e.g. mse,mean_auc; default: the tasks' own")
    parser.add_argument(
        "--split", default="test", choices=("train", "val", "test"), help="that is evaluated"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at once on this machine")
    parser.add_argument("--run", type=int, default=0, help="trains that run of the list alone")
    parser.add_argument("--waves", action="store_true", help="prints which runs may go together")
    parser.add_argument("--dry", action="store_true", help="prints the commands, runs nothing")
    args, rest = parser.parse_known_args(argv)
    for text in rest:
        if not re.match(r"--(no)?config\.", text):
            raise InputError(f"unexpected argument {text!r}; see {parser.prog} --help")
    return args, tuple(rest)


def _plan(args: argparse.Namespace, overrides: tuple[str, ...]) -> Plan:
    if bool(args.list) == bool(args.config) or bool(args.list) == (args.variants is not None):
        raise InputError("give --config=configs/NAME.py and --variants='A;B', or --list=FILE")
    if args.list:
        plan = read_list(args.list)
    else:
        plan = Plan(rows=from_variants(args.config, args.variants.split(";")))
    if args.seeds is not None:
        try:
            seeds = tuple(int(seed) for seed in args.seeds.split(","))
        except ValueError as error:
            raise InputError(f"--seeds={args.seeds}; expected whole numbers: 0,1,2") from error
        plan = dataclasses.replace(plan, seeds=seeds)
    if args.metrics:
        plan = dataclasses.replace(plan, metrics=tuple(args.metrics.split(",")))
    rows = [dataclasses.replace(r, overrides=(*r.overrides, *overrides)) for r in plan.rows]
    return dataclasses.replace(plan, rows=tuple(rows))


class Sweep:
    """The runs of a folder, and how far they are.

    Attributes:
      done: run -> what it came to.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        *,
        output: pathlib.Path,
        split: str,
        metrics: Sequence[str],
        jobs: int = 1,
        alone: bool = True,
    ):
        """Looks at what is there.

        Args:
          runs: in the order of the list.
          output: the sweep's folder.
          split: that is evaluated.
          metrics: columns of the table.
          jobs: how many runs are trained at once.
          alone: no other sweep is at work in this folder; False in an array job.

        Raises:
          InputError: a work directory holds a run of another config, or another process is at work
            there.
        """
        self._runs, self._output, self._split, self._metrics = runs, output, split, metrics
        self._jobs = jobs
        for run in runs:
            if alone and small_files.exists(run.folder / workdirs.LOCK):
                with workdirs.only_writer(run.folder):
                    pass  # nobody else is at work there
        self._found: dict[tuple[str, int], sweep_table.Finished] = {}
        for run in runs:
            self._look(run)
        self._failed: set[tuple[str, int]] = set()
        self._took: list[float] = []

    @property
    def done(self) -> list[Run]:
        """The runs that are finished."""
        return [run for run in self._runs if run.key in self._found]

    def write(self, beside: sweep_references.Reports | None = None) -> str:
        """Writes the table, with what stands `beside` its rows, and gives it as Markdown."""
        done = [self._found[run.key] for run in self.done]
        return sweep_table.write(self._output, self._runs, done, self._metrics, beside=beside)

    def write_whole(self) -> str:
        """The same with the references of the tasks, for which training films are read."""
        done = [self._found[run.key] for run in self.done]
        return self.write(sweep_references.references(done, self._split))

    def __call__(self, stop: StopSignal, *, only: int = 0) -> int:
        """Runs what is not finished, `jobs` at once; the exit status: 0, 1 if a run failed, 128 + a
        signal's number.

        Args:
          only: the number of one run, from 1; 0 for all.
        """
        wanted = [only] if only else self._order()
        waiting = collections.deque((number, self._runs[number - 1]) for number in wanted)
        running: list[_Child] = []
        while waiting or running:
            later: list[tuple[int, Run]] = []
            while waiting and len(running) < self._jobs and not stop.received:
                number, run = waiting.popleft()
                title = f"run {number} of {len(self._runs)}, {run.label}"
                unfinished = {child.run.key for child in running} | {
                    other.key for _, other in later
                }
                if unfinished & {(name, run.seed) for name in run.needs}:
                    later.append((number, run))  # what it begins with is being trained, or waits
                elif self._can_start(run, title):
                    left = self._time_left([run, *(run for _, run in waiting)])
                    print(f"{title}: {run.folder / LOG}{left}", flush=True)
                    running += self._start(run, title)
            waiting.extendleft(reversed(later))
            running = self._wait(running, stop)
            if stop.received and not running:
                break
        if stop.received and any(self._runs[n - 1].key not in self._found for n in wanted):
            print(f"{stop.name} ends the sweep")
            return stop.status
        return 1 if self._failed else 0

    def _order(self) -> list[int]:
        """Numbers of the runs, in order: that of the list, but of several at once those first that
        most others wait for, one after the other, and then a row's first seed before its second,
        which finds the row's programs compiled."""
        numbers = list(range(1, len(self._runs) + 1))
        if self._jobs == 1:
            return numbers
        after: collections.Counter[tuple[str, int]] = collections.Counter()
        for run in reversed(self._runs):  # what a run needs stands before it
            for name in run.needs:
                after[name, run.seed] = max(after[name, run.seed], after[run.key] + 1)
        runs = dict(enumerate(self._runs, 1))
        return sorted(numbers, key=lambda number: (-after[runs[number].key], runs[number].seed))

    def _can_start(self, run: Run, title: str) -> bool:
        """Whether a run is to be trained; tells why not."""
        outdated = self._look(run)  # a run before it may have been trained just now
        if run.key in self._found:
            print(f"{title}: done already", flush=True)
            return False
        missing = [name for name in run.needs if (name, run.seed) not in self._found]
        if outdated:
            self._fail(run, f"{title}: left out, for {outdated}")
        elif missing:
            self._fail(run, f"{title}: left out, for it needs {missing[0]!r}, which is not done")
        return not (outdated or missing)

    def _look(self, run: Run) -> str:
        """Whether it is finished; why what is there is of no use, if so."""
        self._found.pop(run.key, None)
        one = sweep_table.finished(run, self._split)
        outdated = sweep_table.outdated(run)
        if one is not None and not outdated:
            self._found[run.key] = one
        return outdated

    def _start(self, run: Run, title: str) -> list["_Child"]:
        """The child in a list; none where the run's folder is broken."""
        try:
            sweep_table.record_starts(run)
        except InputError as error:
            self._fail(run, f"{title}: failed, {error}")
            return []
        started = time.monotonic()
        process = start_child(run, alone=self._jobs == 1)
        return [_Child(run, title, process=process, started=started)]

    def _wait(self, running: list["_Child"], stop: StopSignal) -> list["_Child"]:
        """Waits until one of the children ends, and of those that a signal was passed on to, all;
        those that are left."""
        try:
            while running:
                ended = [child for child in running if child.process.poll() is not None]
                for child in ended:
                    self._end(child, stop)
                    self.write()
                running = [child for child in running if child not in ended]
                if ended and not stop.received:
                    break
                for child in running:
                    child.pass_on(stop)
                with contextlib.suppress(subprocess.TimeoutExpired, IndexError):
                    running[0].process.wait(timeout=0.2)
        except BaseException:  # a second Ctrl-C: at once, unsaved
            for child in running:
                child.process.kill()
                child.process.wait()
            raise
        return running

    def _end(self, child: "_Child", stop: StopSignal) -> None:
        """What a child came to."""
        run = child.run
        self._took.append(time.monotonic() - child.started)
        one, reason, status = None, "", child.process.returncode
        try:
            sweep_table.add_seconds(run.folder, self._took[-1])
            if status == 0:
                one = sweep_table.finished(run, self._split)
        except InputError as error:
            reason = str(error)
        if one is not None:
            self._found[run.key] = one
        elif not stop.received:
            log = run.folder / LOG
            reason = reason or f"exit status {status}: {_last_line(log)}"
            self._fail(run, f"{child.title}: failed, {reason}; see {log}")

    def _fail(self, run: Run, text: str) -> None:
        self._failed.add(run.key)
        print(one_line(text), file=sys.stderr, flush=True)

    def _time_left(self, left: Sequence[Run]) -> str:
        """From the mean of the runs so far; nothing before the first."""
        if not self._took:
            return ""
        count = sum(run.key not in self._found for run in left)
        minutes = count * sum(self._took) / len(self._took) / 60 / self._jobs
        return f"  [{minutes:.1f} min left]"


@dataclasses.dataclass
class _Child:
    """A run that is being trained, in a process of its own."""

    run: Run
    title: str
    process: subprocess.Popen
    started: float
    _told: bool = False

    def pass_on(self, stop: StopSignal) -> None:
        """A signal that `stop` got, once: the run saves and ends."""
        if stop.received and not self._told:
            self.process.send_signal(signal.SIGTERM)
            self._told = True


def start_child(run: Run, *, alone: bool) -> subprocess.Popen:
    """Starts the training; what it says goes to its log.

    Args:
      run: the training.
      alone: on its accelerator; others take their memory as they need it, not all there is.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    log = os.open(run.folder / LOG, flags, 0o666)
    try:
        os.write(log, f"$ {shlex.join(run.command)}\n".encode())
        # A group of its own: the terminal's Ctrl-C comes to it once, from here.
        return subprocess.Popen(
            run.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
            env=({} if alone else {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}) | os.environ,
        )
    finally:
        os.close(log)


def _last_line(log: pathlib.Path) -> str:
    """What a process said last; its error, if it named one."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return one_line((errors or lines or [""])[-1])[:300]


if __name__ == "__main__":
    run_command(main)
