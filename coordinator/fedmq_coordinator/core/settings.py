"""What a run is told: every setting, its default, its bounds and its unit."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedmq_protocol.codecs import CodecSpec, Rounding, check_coders, optional_coders, versioned
from fedmq_protocol.errors import CodecError
from fedmq_protocol.limits import DEFAULT_CODE_MS, MAX_BLOB_BYTES, MAX_CODE_MS
from fedmq_protocol.messages import Mode, TrainSettings, UploadSettings
from fedmq_protocol.schema import TensorSchema

Fraction = Annotated[FiniteFloat, Field(gt=0, le=1)]
NonNegative = Annotated[FiniteFloat, Field(ge=0)]


class SelectionSettings(BaseModel):
    """Who takes part, and for how long a round waits. Names as in Flower."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fraction_train: Fraction = 1.0
    """Share of the available devices that a round aims at (sync), or that train at once (async)."""
    min_available_devices: Annotated[int, Field(ge=1)] = 2
    """A round does not open with fewer."""
    min_updates: Annotated[int, Field(ge=1)] = 1
    """A synchronous round does not close with fewer, until `round_timeout_s`."""
    over_selection: Annotated[FiniteFloat, Field(ge=1, le=10)] = 1.0
    """Sync: select this many times the aim, and close with the aim's number of updates."""
    deadline_factor: NonNegative = 2.0
    """Sync: close after this many times the median time that devices need; 0: wait for all, up to `round_timeout_s`."""
    deadline_min_s: NonNegative = 1.0
    """The straggler deadline is never shorter."""
    round_timeout_s: Annotated[FiniteFloat, Field(gt=0)] = 600.0
    """Hard end of a round, and of a lease of a device whose speed is not known yet."""


class StrategySettings(BaseModel):
    """How updates become a better model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    server_lr: Annotated[FiniteFloat, Field(gt=0)] | None = None
    """Length of a step. None: 1.6 in a synchronous run with sparse deltas both ways, which makes up for what error
    feedback delays (docs/benchmarks.md); FedBuff: 1.2 K / M with M devices in flight, at most 1; FedAsync:
    1.5 / (alpha sqrt(M)), at most 1; else 1."""
    alpha: Fraction = 0.6
    """FedAsync: weight of a fresh update (Xie et al. 2019, arXiv:1903.03934)."""
    staleness: Literal["constant", "polynomial", "hinge"] = "polynomial"
    staleness_exponent: NonNegative = 0.5
    """Polynomial: s(t) = (1 + t) ** -exponent."""
    hinge_slope: Annotated[FiniteFloat, Field(gt=0)] = 10.0
    hinge_delay: Annotated[int, Field(ge=0)] = 4
    """Hinge: s(t) = 1 up to the delay b, then 1 / (slope * (t - b) + 1)."""
    buffer_size: Annotated[int, Field(ge=1)] | None = None
    """FedBuff's K; None: half of the leases in flight, from 2 to 10."""
    max_staleness: Annotated[int, Field(ge=0)] | None = None
    """Updates trained on an older version are refused; None: a device ten times slower than most is heard."""
    max_norm_ratio: Annotated[FiniteFloat, Field(gt=1)] = 10.0
    """An update whose norm is above this many times the running median is refused."""
    max_examples_ratio: Annotated[FiniteFloat, Field(gt=1)] = 100.0
    """A device's number of examples counts up to this many times the running median."""
    clip: Literal["none", "median"] = "none"
    """median: scale an update down to the running median of the norms."""
    publish_interval_s: NonNegative = 0.0
    """Async: a version is published at most this often; steps in between are private, and add up unseen.

    Keep it well below the time that a device trains: updates that come between two publications do not count as late.
    """


_BITS_AN_ELEMENT: Final = 9  # of an update, more or less; only a default depends on it

Start = Literal["auto", "seed", "snapshot"]


class CompressionSettings(BaseModel):
    """What travels. `none` is float32 both ways."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    up: str = "topk-log4"
    density: Fraction = 0.02
    """Share of the parameters in an update."""
    first_density: Fraction | None = None
    """Density of a device's first update; None: as `density`."""
    anneal_updates: Annotated[int, Field(ge=0)] = 0
    """Over how many updates `first_density` falls to `density`."""
    per_tensor: bool = False
    """Keep the share of each parameter by itself, at least one element of it, and not of the model as a whole."""
    update_bytes: Annotated[int, Field(ge=1, le=MAX_BLOB_BYTES)] | None = None
    """In place of the densities: an update carries as much as fits into so many bytes, its envelope aside."""
    residual_cap: Annotated[FiniteFloat, Field(gt=0)] = 10.0
    down: str = "topk-log4"
    down_density: Fraction = 0.03
    """Share of the parameters in a published delta."""
    snapshot: str = "int8"
    """Codec of whole models: of the first, unless the run starts from a seed, and of those that a rebase makes."""
    start: Start = "auto"
    """seed: devices draw the first weights from the run's seed themselves, so that they need not travel; refused if the
    model's own are not drawn in a way that a recipe can tell. snapshot: the first weights travel. auto: seed if it can
    be, else snapshot."""
    rounding: Rounding = "nearest"
    """Of updates in linear levels: to the nearest, or by chance, which is right in expectation."""
    coders: tuple[str, ...] | None = None
    """Names of the optional coders that updates may use besides the mandatory ones; None: all that there are."""
    code_ms: Annotated[int, Field(ge=0, le=MAX_CODE_MS)] = DEFAULT_CODE_MS
    """About how long each side may take over one update or delta. Indices a quarter shorter than with Rice codes take
    about 3.5 us an element kept and 8 us a row of each tensor, values a third shorter than with zstd 2 us. 0: neither.
    """

    @property
    def offered_coders(self) -> tuple[str, ...]:
        """The optional coders that devices are told of."""
        return optional_coders() if self.coders is None else self.coders

    @property
    def needed_codecs(self) -> tuple[str, ...]:
        """What a device must speak to take part."""
        return tuple(dict.fromkeys(map(versioned, (self.up, self.down, self.snapshot))))

    @property
    def upload(self) -> UploadSettings:
        """What devices are told of this."""
        return UploadSettings(
            codec=self.up,
            density=self.density,
            first_density=self.first_density or self.density,
            anneal_updates=self.anneal_updates,
            residual_cap=self.residual_cap,
            coders=list(self.offered_coders),
            code_ms=self.code_ms,
            rounding=self.rounding,
            per_tensor=self.per_tensor,
            update_bytes=self.update_bytes,
        )

    def up_spec(self, schema: TensorSchema) -> CodecSpec:
        """How the densest update of a model is encoded."""
        return CodecSpec(
            self.up,
            max(self.density, self.first_density or 0.0),
            tensors=schema.parameter_sizes if self.per_tensor else (),
            max_bytes=self.update_bytes,
        )

    def expected_density(self, num_parameters: int) -> float:
        """About what share of the parameters an update will carry."""
        if self.update_bytes is None:
            return self.density
        return min(1.0, 8 * self.update_bytes / (_BITS_AN_ELEMENT * max(1, num_parameters)))

    @model_validator(mode="after")
    def _is_something_that_the_codec_can_do(self) -> CompressionSettings:
        try:
            CodecSpec(self.up, rounding=self.rounding, max_bytes=self.update_bytes)
        except CodecError as error:
            raise ValueError(str(error)) from None
        return self

    @field_validator("up", "down", "snapshot", "coders")
    @classmethod
    def _known(
        cls, value: str | tuple[str, ...] | None, info: ValidationInfo
    ) -> str | tuple[str, ...] | None:
        try:
            if not isinstance(value, str):
                check_coders(value or ())
            elif CodecSpec(value).sparse and info.field_name == "snapshot":
                raise ValueError(f"a snapshot holds every parameter, which {value} does not")
            elif CodecSpec(value).codec.masked and info.field_name == "down":
                raise ValueError(f"{value} is for updates: a version says itself what changed most")
        except CodecError as error:
            raise ValueError(str(error)) from None
        return value


class RunSettings(BaseModel):
    """One run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "sync"
    rounds: Annotated[int, Field(ge=1)] = 20
    """Sync: rounds. Async: published versions."""
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    target: FiniteFloat | None = None
    """The run ends once `target_metric` of the central (or else the federated) evaluation reaches this."""
    target_metric: str = "accuracy"
    evaluate_every: Annotated[int, Field(ge=0)] = 1
    """Central evaluation every so many versions; 0: never."""
    federated_evaluation: bool = True
    """Devices evaluate the version that they train on, where they have test data of their own."""
    selection: SelectionSettings = SelectionSettings()
    strategy: StrategySettings = StrategySettings()
    compression: CompressionSettings = CompressionSettings()
    train: TrainSettings = TrainSettings()
