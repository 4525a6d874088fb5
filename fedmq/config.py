"""What holds, and where it came from: one TOML file, overridden by `FEDMQ_*` variables, overridden by flags.

A setting is named by its path, `run.selection.min_updates`:

    in a file       [run.selection]
                    min_updates = 3
    as a variable   FEDMQ_RUN__SELECTION__MIN_UPDATES=3      (two underscores for each dot)
    as a flag       --set selection.min_updates=3            (or the flag of its own, where it has one)

Each value keeps its origin, so that a complaint can name the file and the key, and `fedmq config show` can tell.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from fedmq_protocol.errors import ConfigError, UsageError

VARIABLE_PREFIX = "FEDMQ_"
NOT_SETTINGS = frozenset({"FEDMQ_DEBUG"})
_SIBLING_CUTOFF = 0.45
"""Variables of ours that are no settings."""

Key = tuple[str, ...]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Origin:
    """Where a value came from; `detail` is the file, the variable or the flag."""

    kind: Literal["default", "file", "variable", "flag"]
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.detail}".rstrip()


@dataclass(frozen=True)
class Setting:
    """A value as it was found. Text (a variable, `--set`) is read as the type that its place asks for."""

    value: object
    origin: Origin
    text: bool = False


@dataclass(frozen=True)
class Shown:
    """One line of `fedmq config show`."""

    key: str
    value: str
    origin: Origin


class Configuration:
    """All settings that were given, by key; tables are checked when they are asked for."""

    def __init__(self, *, path: Path | None = None) -> None:
        self._path = path
        self._settings: dict[Key, Setting] = {}

    @property
    def path(self) -> Path | None:
        """The file that was read, if there was one."""
        return self._path

    def put(self, key: Key, setting: Setting) -> None:
        """Let `setting` hold at `key`, and drop what it replaces."""
        for known in [known for known in self._settings if known[: len(key)] == key]:
            del self._settings[known]
        self._settings[key] = setting

    def origin(self, dotted: str) -> Origin:
        """Where the value of a setting comes from."""
        setting = self._settings.get(tuple(dotted.split(".")))
        return Origin("default") if setting is None else setting.origin

    def gives(self, *key: str) -> bool:
        """Whether this setting, or anything in this table, was given at all."""
        return any(known[: len(key)] == key for known in self._settings)

    def table(self, name: str, model: type[Model]) -> Model:
        """Check one table and return it.

        Raises:
            ConfigError: an unknown key, or a value that its field does not take; says where it stands.
        """
        plain: dict[str, Any] = {}
        for key, setting in self._under(name):
            place = plain
            for part in key[:-1]:
                place = place.setdefault(part, {})
                if not isinstance(place, dict):
                    raise ConfigError(
                        f"{self._where(name, key, setting)}: {part!r} is a value and a table at once"
                    )
            place[key[-1]] = self._read(name, key, setting, model)
        return self.checked(model, plain, table=name)

    def checked(self, model: type[Model], plain: Mapping[str, Any], *, table: str) -> Model:
        """Build a model of values that come from `table`.

        Raises:
            ConfigError: a value is wrong; names where it stands.
        """
        try:
            return model.model_validate(plain)
        except ValidationError as error:
            raise ConfigError(self._complaint(table, error)) from None

    def show(self, tables: Mapping[str, type[BaseModel]]) -> Iterator[Shown]:
        """Each setting of each of `tables`, given or default, secrets masked."""
        for name, model in tables.items():
            built = self.table(name, model)
            for key, value in _leaves(built):
                yield Shown(".".join((name, *key)), shown(value), self.origin(".".join((name, *key))))

    def _under(self, table: str) -> list[tuple[Key, Setting]]:
        return [(key[1:], setting) for key, setting in self._settings.items() if key[0] == table]

    def _read(self, table: str, key: Key, setting: Setting, model: type[BaseModel]) -> object:
        """A value as its field takes it: text is parsed, a path in the file is relative to the file's folder."""
        found = _field(model, key)
        if found is None:
            raise ConfigError(self._unknown(table, key, setting, model))
        annotation = found.annotation_of(key)
        value = setting.value
        if setting.text:
            value = _from_text(annotation, str(value))
        if setting.origin.kind == "file" and self._path is not None and isinstance(value, str):
            is_place = found.is_task and (".py" in value or "/" in value)  # else it names an installed module
            if _takes(annotation, Path):
                value = self._path.parent / Path(value).expanduser()
            elif is_place or key == ("data", "folder"):  # the one free key that every task understands
                value = str(self._path.parent / Path(value).expanduser())
        return value

    def _where(self, table: str, key: Key, setting: Setting) -> str:
        if setting.origin.kind == "file":
            heading = ".".join((table, *key[:-1]))
            return f"{setting.origin.detail}: [{heading}] {key[-1]}"
        return str(setting.origin.detail)

    def _unknown(self, table: str, key: Key, setting: Setting, model: type[BaseModel]) -> str:
        known = [".".join(known) for known, _ in _leaves_of(model)]
        near = _nearest_key(key, known)
        if near is not None and setting.origin.kind == "file":  # the complaint names the table already
            near = near.removeprefix(".".join((*key[:-1], "")))
        return f"{self._where(table, key, setting)}: there is no such setting{near_text(near, known)}"

    def _complaint(self, table: str, error: ValidationError) -> str:
        first = error.errors()[0]
        location = tuple(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        text = text[:1].lower() + text[1:]
        for length in range(len(location), 0, -1):
            key = location[:length]
            setting = self._settings.get((table, *key))
            if setting is not None:
                secret = _is_secret(key[-1])
                given = "" if secret else f", not {_short(setting.value)}"
                return f"{self._where(table, key, setting)}: {text}{given}"
        words = re.findall(r"\w+", text)
        for key, setting in self._under(table):
            if not location and key[-1] in words:  # of the table as a whole, but it names what was given
                return f"{self._where(table, key, setting)}: {text}"
        heading = ".".join((table, *location))
        if first["type"] == "missing":
            where = f"{self._path}: " if self._path else ""
            table_of, _, key_of = heading.rpartition(".")
            return f"{where}[{table_of}] {key_of} is missing"
        return f"[{heading}] {text}"


def load(
    path: Path | None,
    *,
    tables: Collection[str],
    environ: Mapping[str, str],
    flags: Mapping[str, tuple[str, object]] | None = None,
    sets: Mapping[str, str] | None = None,
) -> Configuration:
    """Layer the file, the variables and the flags.

    Args:
        path: the TOML file; None where there is none.
        tables: the names of the tables that exist.
        environ: the environment.
        flags: dotted setting -> (flag, value); a value of None was not given.
        sets: dotted setting -> text, from `--set`.

    Raises:
        UsageError: the file cannot be read.
        ConfigError: it is no TOML, or names a table or variable that does not exist.
    """
    configuration = Configuration(path=path)
    if path is not None:
        for key, value in _flat(_parse(path), ()):
            _check_table(key, tables, where=f"{path}: [{key[0]}]")
            configuration.put(key, Setting(value, Origin("file", str(path))))
    for name, text in sorted(environ.items()):
        if named := variable_key(name):
            _check_table(named, tables, where=name)
            configuration.put(named, Setting(text, Origin("variable", name), text=True))
    for dotted, (flag, value) in (flags or {}).items():
        if value is not None:
            configuration.put(tuple(dotted.split(".")), Setting(value, Origin("flag", flag)))
    for dotted, text in (sets or {}).items():
        key = tuple(dotted.split("."))
        configuration.put(key, Setting(text, Origin("flag", f"--set {'.'.join(key[1:])}"), text=True))
    return configuration


def variable_key(name: str) -> Key | None:
    """The setting that a variable names: `FEDMQ_BROKER__URL` is `broker.url`; None for any other variable."""
    if not name.startswith(VARIABLE_PREFIX) or name in NOT_SETTINGS or "__" not in name:
        return None
    return tuple(name.removeprefix(VARIABLE_PREFIX).lower().split("__"))


def nearest(wrong: str, known: list[str], *, cutoff: float = 0.6) -> str | None:
    """The name that was probably meant."""
    import difflib  # for complaints alone

    found = difflib.get_close_matches(wrong, known, n=1, cutoff=cutoff)
    return found[0] if found else None


def _nearest_key(key: Key, known: list[str]) -> str | None:
    """The full path of the setting that was probably meant: a sibling of any likeness, else whatever looks alike."""
    prefix = ".".join((*key[:-1], ""))
    siblings = [name.removeprefix(prefix) for name in known if name.startswith(prefix)]
    if prefix and (near := nearest(key[-1], siblings, cutoff=_SIBLING_CUTOFF)):
        return prefix + near
    if near := nearest(".".join(key), known):
        return near
    near = nearest(key[-1], [name.rpartition(".")[2] for name in known])
    return next((name for name in known if name.rpartition(".")[2] == near), None)


def near_text(near: str | None, known: list[str]) -> str:
    """How a complaint about an unknown name ends."""
    return f"; did you mean {near!r}?" if near else f"; there are {', '.join(sorted(known))}"


def first_complaint(error: ValidationError) -> str:
    """The first complaint of a validation in one line: where, and what is wrong."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


# ---------------------------------------------------------------------------------------------- reading


def _parse(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise UsageError(f"there is no file {str(path)!r}") from None
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _flat(table: Mapping[str, Any], prefix: Key) -> Iterator[tuple[Key, object]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _check_table(key: Key, tables: Collection[str], *, where: str) -> None:
    known = list(tables)
    if len(key) == 1:
        raise ConfigError(f"{where}: {key[0]!r} must stand in a table; there are {', '.join(known)}")
    if key[0] not in tables:
        raise ConfigError(f"{where}: there is no such table{near_text(nearest(key[0], known), known)}")


# --------------------------------------------------------------------------------- what a model asks for


@dataclass(frozen=True)
class _Place:
    """The field that a key leads to; a key may go deeper, into a field of free keys."""

    info: FieldInfo
    depth: int

    @property
    def is_task(self) -> bool:
        extra = self.info.json_schema_extra
        return isinstance(extra, dict) and extra.get("fedmq") == "task"

    def annotation_of(self, key: Key) -> Any:  # noqa: ANN401 - a type, a union or an annotated form
        if len(key) > self.depth:  # inside a dict: its values' type
            arguments = [get_args(kind) for kind in _alternatives(self.info.annotation) if _is_mapping(kind)]
            return arguments[0][1] if arguments and arguments[0] else Any
        annotation = self.info.annotation
        return Annotated[annotation, *self.info.metadata] if self.info.metadata else annotation


def _field(model: type[BaseModel], key: Key) -> _Place | None:
    info = model.model_fields.get(key[0])
    if info is None:
        return None
    if len(key) == 1:
        return _Place(info, 1)
    nested = _nested_model(info.annotation)
    if nested is not None:
        inner = _field(nested, key[1:])
        return None if inner is None else _Place(inner.info, inner.depth + 1)
    return _Place(info, 1) if any(_is_mapping(kind) for kind in _alternatives(info.annotation)) else None


def _alternatives(annotation: Any) -> list[Any]:  # noqa: ANN401 - a type, a union or an annotated form
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    return [annotation]


def _is_mapping(kind: Any) -> bool:  # noqa: ANN401 - a type or a generic form
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _nested_model(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - a type, a union or an annotated form
    kinds = [kind for kind in _alternatives(annotation) if kind is not NoneType]
    if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel):
        return kinds[0]
    return None


def _takes(annotation: Any, wanted: type) -> bool:  # noqa: ANN401 - a type, a union or an annotated form
    return any(kind is wanted for kind in _alternatives(annotation))


def _from_text(annotation: Any, text: str) -> object:  # noqa: ANN401 - a type, a union or an annotated form
    """Read text as the type that is asked for; as a TOML value where any would do, or the type is a list or table."""
    kinds = _alternatives(annotation)
    if text == "" and NoneType in kinds:
        return None
    if not any(kind is Any or _is_mapping(kind) or get_origin(kind) in {list, tuple} for kind in kinds):
        try:
            value: object = TypeAdapter(annotation).validate_strings(text)
        except ValidationError:
            return text  # the table's own check complains, with the place
        return value
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, bool | int | float | str | list | dict) else text


# -------------------------------------------------------------------------------------------- showing


def _leaves(model: BaseModel, prefix: Key = ()) -> Iterator[tuple[Key, object]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, (*prefix, name))
        elif isinstance(value, dict) and value:
            for inner, item in value.items():
                yield (*prefix, name, str(inner)), item
        else:
            yield (*prefix, name), value


def _leaves_of(model: type[BaseModel], prefix: Key = ()) -> Iterator[tuple[Key, FieldInfo]]:
    for name, info in model.model_fields.items():
        nested = _nested_model(info.annotation)
        if nested is None:
            yield (*prefix, name), info
        else:
            yield from _leaves_of(nested, (*prefix, name))


_CREDENTIALS = re.compile(r"(?<=://)[^/@]*(?=@)|(?<=password=)[^&'\"\s]*")


def _is_secret(name: str) -> bool:
    return any(word in name for word in ("password", "secret", "token")) and not name.endswith("_file")


def shown(value: object) -> str:
    """A value as TOML has it, near enough; a secret as asterisks, none as a dash."""
    match value:
        case None:
            return "-"
        case SecretStr():
            return "********"
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{_CREDENTIALS.sub("********", value)}"'
        case Path():
            return f'"{value}"'
        case list() | tuple():
            return f"[{', '.join(map(shown, value))}]"
        case _:
            return str(value)


def _short(value: object) -> str:
    text = repr(value)
    text = _CREDENTIALS.sub("********", text)
    limit = 60
    return text if len(text) <= limit else text[: limit - 1] + "…"
