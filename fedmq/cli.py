"""The command `fedmq`. Verbs are found in one table and imported when they are asked for.

Every failure that we know of is one line on stderr and exit code 1 (2 for a wrong option, 130 for Ctrl-C).
FEDMQ_DEBUG=1 shows the traceback instead.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final, NoReturn

import click

from fedmq.verbs import Verbs
from fedmq_protocol.errors import FedmqError

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 128 + signal.SIGINT

VERBS: Final[dict[str, tuple[str, str]]] = {
    "demo": (
        "fedmq.commands.demo:demo",
        "Train on ten devices over a real broker, on this machine, and watch.",
    ),
    "run": ("fedmq.commands.run:run", "Start, watch, list, stop and report runs."),
    "model": ("fedmq.commands.model:model", "List and export model versions."),
    "coordinator": ("fedmq.commands.coordinator:coordinator", "Start the coordinator."),
    "store": ("fedmq.commands.store:store", "Look after the coordinator's journal: gc, verify, backup."),
    "agent": (
        "fedmq.commands.agent:agent",
        "Start a device's agent, see how it stands, or try out a task.",
    ),
    "device": ("fedmq.commands.device:device", "Let devices in, look after them, throw them out."),
    "broker": (
        "fedmq.commands.broker:broker",
        "Set up, run, watch and check the broker, or start one for trying out.",
    ),
    "simulate": ("fedmq.commands.simulate:simulate", "The real cores in virtual time: a fleet, or faults."),
    "config": ("fedmq.commands.config:config", "Show what holds, and where it came from."),
}
"""Each verb: where it is, and its line in `fedmq --help`. Adding one is a file and a line here."""


def _print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click's signature
    if wanted:
        from importlib.metadata import version

        click.echo(f"fedmq {version('fedmq')}")
        ctx.exit()


@click.group(
    cls=Verbs, verbs=VERBS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
def cli() -> None:
    """Federated learning over nothing but an MQTT broker.

    Begin with `fedmq demo`. FEDMQ_DEBUG=1 shows a traceback where a command fails.
    """


def main() -> NoReturn:
    """Run the command of this process's arguments, and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code; whatever goes wrong is one line on stderr."""
    debug = os.environ.get("FEDMQ_DEBUG", "") not in {"", "0"}
    try:
        result = cli.main(args=arguments, prog_name="fedmq", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left: `fedmq run ls | head -1`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - for the flush at exit
        return EXIT_FAILED
    except FedmqError as error:
        if debug:
            raise
        return _fail(str(error))
    except Exception as error:
        if debug:
            raise
        if isinstance(error, PermissionError) and error.filename is not None:
            return _fail(f"{error.filename} is closed to this user: be its owner, or root")
        return _fail(
            f"this should not have happened: {type(error).__name__}: {error} (FEDMQ_DEBUG=1 shows where)"
        )
    return result if isinstance(result, int) else 0


def _fail(text: str) -> int:
    line = " ".join(text.split())
    click.echo(f"fedmq: {line}", err=True)
    return EXIT_FAILED
