"""Command lines that documents and deployments promise, held to the command as it is."""

from __future__ import annotations

import click

from fedmq.cli import cli


def check_command(arguments: list[str]) -> None:
    """Let click parse the arguments of `fedmq` without running anything.

    Raises:
        AssertionError: there is no such verb.
        click.UsageError: there is no such option, or an argument is wrong or missing.
    """
    context = click.Context(cli, info_name="fedmq")
    command: click.Command = cli
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        found = command.get_command(context, arguments[0])
        assert found is not None, f"fedmq has no {' '.join(arguments)!r}"
        command, arguments = found, arguments[1:]
    # Options that answer and leave, such as --help, would do so while parsing.
    with click.Context(command, info_name=command.name, parent=context) as inner:
        parser = command.make_parser(inner)
        values, rest, _ = parser.parse_args(list(arguments))
        assert rest == [] or isinstance(command, click.Group), f"not understood: {rest}"
        for parameter in command.params:
            if parameter.name in values and not parameter.is_eager and not takes_a_file(parameter):
                parameter.process_value(inner, values[parameter.name])


def takes_a_file(parameter: click.Parameter) -> bool:
    """A path in an example need not be there."""
    return isinstance(parameter.type, click.Path | click.File)
