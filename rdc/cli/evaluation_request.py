"""One call of ``rdc evaluate``: its options read and checked, before anything is loaded."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdc.arguments.defaults import EvaluationDefaults
from rdc.cli.options import apply_preset, model_choice
from rdc.cli.shell import command_line
from rdc.cli.threat_options import chosen_threats
from rdc.errors import ConfigError

if TYPE_CHECKING:
    from rdc.evaluation import EvaluationSettings, Threat
    from rdc.evaluation.shards import Shard
    from rdc.models.choice import ModelChoice

__all__ = ["Request", "read_request"]

_HERE = {"--overwrite", "--quiet"}  # options that do not belong in the recorded command
_DEFAULT = EvaluationDefaults()


@dataclasses.dataclass(frozen=True)
class Request:
    """One call of ``rdc evaluate``, read and checked.

    Args:
        settings: what to evaluate; its batch is for a CPU unless ``batch_given``.
        attacks: as they were named, suites not written out.
        model: which model.
        data_root: the only folder to look for the data in; None: the usual ones.
        out: folder of the run.
        command: the command line for the report.
        again: the command line that continues the run.
        batch_given: whether the size of a batch was asked for.
        overwrite, quiet, form, dry_run: the options of these names; ``form`` is ``--format``.
        threats: norms and radii where there are several; ``settings`` has the first.
        adversarial: the file that adversarial images go to; None: no file but those of the run.
        shard: the part of the batches that is done here; None: all.
    """

    settings: EvaluationSettings
    attacks: tuple[str, ...]
    model: ModelChoice
    data_root: str | None
    out: Path
    command: str
    again: str
    batch_given: bool
    overwrite: bool
    quiet: bool
    form: str
    dry_run: bool
    threats: tuple[Threat, ...] = ()
    adversarial: Path | None = None
    shard: Shard | None = None

    @property
    def first_folder(self) -> Path:
        """Where the first results go."""
        return self.out / self.threats[0].folder if self.threats else self.out

    def adversarial_of(self, threat: Threat | None = None) -> Path | None:
        """Where adversarial images go, of one of several threats: its name before the ending."""
        path = self.adversarial
        return path if path is None or threat is None else path.with_name(f"{path.stem}-{threat.folder}{path.suffix}")

    @property
    def images(self) -> int:
        """Images of all threats."""
        return self.settings.n * max(1, len(self.threats))

    def threats_for(self, classifier: Any) -> tuple[EvaluationSettings, ...]:
        """The settings of each threat on this classifier."""
        from rdc.evaluation.threats import attacks_within, settings_of_threats

        chosen = settings_of_threats(self._on(classifier), self.attacks, self.threats)
        return tuple(one.for_defence(classifier, attacks_within(str(one.norm), self.attacks)) for one in chosen)

    @property
    def options(self) -> dict[str, Any]:
        """Of ``evaluate``."""
        return {"command": self.command, "overwrite": self.overwrite, "progress": not self.quiet}

    def settings_for(self, classifier: Any) -> EvaluationSettings:
        """The settings on this classifier's device, without the parts of suites that it does not offer."""
        return self._on(classifier).for_defence(classifier, self.attacks)

    def _on(self, classifier: Any) -> EvaluationSettings:
        """The settings on this classifier's device."""
        if not self.batch_given and classifier.device.type == "cuda":
            return dataclasses.replace(self.settings, batch=_DEFAULT.batch_on_a_gpu)
        return self.settings


def read_request(args: argparse.Namespace) -> Request:
    """What the options ask for; ``args`` is whole from here on.

    Raises:
        ConfigError: an option is none, or does not go with another.
    """
    from rdc.evaluation import EvaluationSettings, parse_attacks, settings_of_threats
    from rdc.evaluation.shards import Shard
    from rdc.evaluation.threats import folder_of_threats

    attacks, preset = parse_attacks(args.attacks), apply_preset(args, "noise")
    args.noise = _DEFAULT.noise if args.noise is None else args.noise
    choice = model_choice(args)  # args.model is whole from here on
    threats = chosen_threats(args)
    if args.lpips_model is not None and "lpips" not in {args.norm, *(threat.norm for threat in threats)}:
        raise ConfigError(
            f"--lpips-model: expected the threat lpips with it; got {args.norm}. Leave it out, or say --norm lpips"
        )
    named = {field.name for field in dataclasses.fields(EvaluationSettings)}
    fields = {name: getattr(args, name) for name in named - {"dataset", "attacks", "batch", "preset"}}
    batch = {} if args.batch is None else {"batch": args.batch}
    name = None if preset is None else preset.name
    settings = EvaluationSettings(dataset=args.data, attacks=attacks, preset=name, **fields, **batch)
    if threats:
        settings_of_threats(settings, attacks, threats)  # before anything is loaded
    default = folder_of_threats(settings, threats) if threats else settings.default_folder
    shard = None if args.shard is None else Shard.parse(args.shard)
    if shard is not None:
        default = default.with_name(f"{default.name}-{shard.number}-of-{shard.count}")
        if args.save_adversarial is not None:
            raise ConfigError("--save-adversarial: a part has not all images; give it to the whole, after rdc merge")
    out = Path(args.out) if args.out else default
    return Request(
        settings,
        attacks,
        choice,
        args.data_root,
        out=out,
        command=command_line(_of_the_whole(args.argv), without=_HERE),
        again=command_line(args.argv, without=["--overwrite"]),
        batch_given=args.batch is not None,
        overwrite=args.overwrite,
        quiet=args.quiet,
        form=args.format,
        dry_run=args.dry_run,
        threats=threats,
        adversarial=_adversarial(args, out),
        shard=shard,
    )


def _of_the_whole(argv: Sequence[str]) -> list[str]:
    """The words of the command but for --shard: every part records the same."""
    words = [word for word in argv if not word.startswith("--shard=")]
    place = words.index("--shard") if "--shard" in words else len(words)
    return words[:place] + words[place + 2 :]


def _adversarial(args: argparse.Namespace, out: Path) -> Path | None:
    from rdc.evaluation.adversarial_files import IN_A_RUN, check_name

    if args.save_adversarial is None:
        return None
    if args.attacks.strip().lower() == "none":
        raise ConfigError("--save-adversarial: nothing attacks; leave it out, or name --attacks")
    return out / IN_A_RUN if args.save_adversarial == "" else check_name(args.save_adversarial)
