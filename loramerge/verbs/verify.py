"""verify: does a file hold what its recipe, or a claim, says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from loramerge.adapter import Adapter
from loramerge.adapter.metadata import RECIPE_KEY
from loramerge.algebra.compare import Comparison
from loramerge.algebra.kinship import ROUNDED
from loramerge.algebra.weights import Weight, shown_number
from loramerge.checkpoint import Checkpoint, open_checkpoint
from loramerge.errors import AdapterError, RecipeError, Setting, UsageError
from loramerge.parameters import Doc
from loramerge.steps.claims import Claim, contents_of
from loramerge.steps.inputs import adapter_of, model_of, open_base
from loramerge.steps.inside import Recipe, inside, parts_in, total_of
from loramerge.steps.merge_claims import merge_claims
from loramerge.steps.parameters import Context, Verb
from loramerge.steps.prediction import Prediction, predict_reading, predict_report
from loramerge.steps.provenance import recipe_in
from loramerge.steps.recorded import Recorded, require_inputs
from loramerge.steps.references import Reference
from loramerge.steps.verify_result import Twice, VerifyResult
from loramerge.verbs import verb_named
from loramerge.verbs.diff import diff_adapters

__all__ = ["VERB", "Verify", "VerifyResult", "verify"]


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check whether a file holds what its recipe says, or what you say: a base with adapters in it.

    Without --base the recipe in the header counts. An adapter is computed again from its inputs, and the
    changes (ΔW) are compared. A checkpoint is compared with its base: the strength of every adapter in
    it, and how much of it rounding kept, are found by least squares, module by module. Exit code 1
    means that the file does not hold what it should, or that rounding is too coarse to tell.
    """

    file: Annotated[Reference, Doc("Checkpoint or adapter to check.", ("FILE",), None, "models")]
    base: Annotated[
        str | None,
        Doc("Checkpoint that the adapters were added to.", ("--base", "-b"), "BASE", "bases"),
    ] = None
    lora: Annotated[
        tuple[Reference, ...],
        Doc(
            "An adapter that should be in it, as NAME:0.8; without a weight its strength is found. May "
            "be repeated.",
            ("--lora", "-l"),
            "ADAPTER",
            "adapters",
        ),
    ] = ()
    input: Annotated[
        tuple[str, ...],
        Doc(
            "Take an input of the recipe from this path; may be repeated.",
            ("--input", "-i"),
            "NAME=PATH",
            recipe=False,
        ),
    ] = ()

    def check(self) -> None:
        """Refuse parameters that contradict each other, before any file is opened.

        Raises:
            UsageError: naming the parameter.
        """
        if (self.base is None) != (not self.lora):
            raise UsageError(
                "adapters are looked for in the change of a base",
                hint=("give both ", Setting("base", "BASE"), " and ", Setting("lora", "NAME")),
            )
        if self.base is not None and self.input:
            raise UsageError(
                "inputs are those of the recipe in the header, and a base is given instead of it",
                hint=("leave out ", Setting("input"), " or ", Setting("base")),
            )
        for reference in self.lora:
            if reference.weight == Weight(0.0):
                raise UsageError(
                    f"{reference.name} should be there at weight 0, that is, not at all"
                )

    @property
    def places(self) -> Mapping[str, str]:
        """Input → path.

        Raises:
            UsageError: for a text that is not NAME=PATH.
        """
        found = {}
        for text in self.input:
            name, equals, path = text.partition("=")
            if not equals or not name:
                raise UsageError(f"{text!r} is not NAME=PATH")
            found[name] = path
        return found


def verify(parameters: Verify, context: Context = Context()) -> VerifyResult:
    """Check a file.

    Raises:
        UsageError: for an input that the recipe does not have.
        RecipeError: if the header holds no recipe, or one that cannot be checked.
        NotFound: naming the inputs that cannot be found.
        LoramergeError: see `steps.claims.contents_of`.
    """
    parameters.check()
    places = parameters.places
    given = model_of(parameters.file, context)
    if parameters.base is not None:
        return _claimed(given, parameters, context)
    recipe = _recipe_of(given)
    require_inputs(recipe, places, _path_of(given))
    recorded = Recorded(_path_of(given), recipe, places, verb_named, context)
    if isinstance(given, Adapter):
        return _adapter(given, recorded, context)
    return _recorded(given, recorded, context)


def predict(parameters: Verify, context: Context = Context()) -> Prediction:
    """Predict what checking takes."""
    given = model_of(parameters.file, context)
    if isinstance(given, Adapter):
        return predict_report([given, given])
    adapters = [adapter_of(reference, context) for reference in parameters.lora]
    return predict_reading(predict_report(adapters), [given.size, given.size])


VERB = Verb("verify", Verify, "report", verify, predict)


def _path_of(given: Adapter | Checkpoint) -> Path:
    if isinstance(given, Checkpoint):
        return given.path
    path = given.info.path
    if path is None:
        raise UsageError("only a file can be verified", found="an adapter in memory")
    return Path(path)


def _recipe_of(given: Adapter | Checkpoint) -> Recipe:
    """Return the recipe in the header of a file.

    Raises:
        RecipeError: if there is none.
    """
    if isinstance(given, Adapter):
        headers: Sequence[Mapping[str, str]] = [given.info.metadata]
    else:
        headers = [file.open()[1] for file in given.files.weights]
    for metadata in headers:
        if RECIPE_KEY in metadata:
            found = recipe_in(metadata)
            if found is None:
                raise RecipeError("the recipe in the header cannot be read", file=_path_of(given))
            return found
    raise RecipeError(
        "the header holds no recipe that made this file",
        file=_path_of(given),
        expected=f"metadata {RECIPE_KEY}, which loramerge writes by default",
        hint=(
            "say what should be in it: ",
            Setting("base", "BASE"),
            " ",
            Setting("lora", "NAME"),
        )
        if isinstance(given, Checkpoint)
        else "`loramerge diff` compares it with another adapter",
    )


# --- checkpoints ------------------------------------------------------------------------------------


def _claimed(given: Adapter | Checkpoint, parameters: Verify, context: Context) -> VerifyResult:
    """Look for the adapters that the parameters name."""
    assert parameters.base is not None
    if isinstance(given, Adapter):
        raise UsageError(
            "this is an adapter, and adapters are looked for in checkpoints",
            found=str(given.label),
            hint="`loramerge compare FILES --ingredients ADAPTER` explains it by others",
        )
    base = open_base(parameters.base, context)
    claims = [
        Claim(
            adapter_of(one, context),
            one.label,
            one.weight,
            one.stated or one.weight != Weight(),
        )
        for one in parameters.lora
    ]
    found = contents_of(given, base, claims, context)
    for one in found.found:
        if one.nothing:
            raise AdapterError(
                "this adapter changes nothing, so there is nothing to look for in a checkpoint",
                file=one.claim.adapter.label,
                found="every module is exactly zero",
                hint="`loramerge inspect --deep` shows the modules; leave this adapter out",
            )
    return VerifyResult(str(given.path), "given", str(base.path), found)


def _recorded(given: Checkpoint, recorded: Recorded, context: Context) -> VerifyResult:
    """Compare a checkpoint with the recipe in its header."""
    verb, content = recorded.last
    if verb == "merge":
        base, claims, notes = merge_claims(content, recorded)
        contents = contents_of(given, base, claims, context, beside=False)
        notes = [*notes, *recorded.notes]
        return VerifyResult(str(given.path), verb, str(base.path), contents, notes=notes)
    if verb not in ("bake", "unbake"):
        raise RecipeError(
            f"what `{verb or 'nothing'}` made cannot be checked by its change",
            file=given.path,
            hint="`loramerge run FILE` makes it again and compares the two",
        )
    sign, word = (1.0, "base") if verb == "bake" else (-1.0, "checkpoint")
    base = open_checkpoint(recorded.file(str(content.get(word))))
    claims = []
    for name, weight in parts_in(content):
        adapter = recorded.adapter(name)
        reference = Reference(name)
        if isinstance(adapter, Path):
            adapter = adapter_of(reference, _with(context, name, adapter))
        claims.append(Claim(adapter, name, weight.times(sign), True))
    found = contents_of(given, base, claims, context)
    return VerifyResult(
        str(given.path), verb, str(base.path), found, notes=recorded.notes,
        twice=_twice(recorded.recipe),
    )  # fmt: skip


def _with(context: Context, name: str, path: Path) -> Context:
    return replace(context, known={**context.known, name: path}, skip_unknown=True)


def _twice(recipe: Recipe) -> list[Twice]:
    """Return the adapters that a checkpoint holds more than once, according to its header."""
    those = inside(recipe)
    found = []
    for digest in dict.fromkeys(one.sha256 for one in those if one.sha256):
        bakes = [one for one in those if one.sha256 == digest]
        total = total_of(those, digest)
        if len([one for one in bakes if one.weight.default > 0]) > 1 and total != 0.0:
            weights = [shown_number(one.weight.default) for one in bakes]
            found.append(Twice(bakes[0].name, weights, total))
    return found


# --- adapters ---------------------------------------------------------------------------------------


def _adapter(given: Adapter, recorded: Recorded, context: Context) -> VerifyResult:
    """Compare an adapter with what its recipe gives now."""
    again = recorded.computed(recorded.recipe)
    comparison = diff_adapters(again, given, context, tolerance=ROUNDED).comparison
    exact, lost = recorded.uncut(), None
    if exact is not None:
        kin = diff_adapters(exact, given, context, tolerance=ROUNDED).comparison.kinship
        lost = kin.lost if kin.kind == "resized" and kin.smaller == "B" else None
    return VerifyResult(
        str(_path_of(given)), recorded.last[0], None, None, comparison,
        notes=recorded.notes, changed=_changed(comparison), lost=lost,
    )  # fmt: skip


def _changed(found: Comparison) -> dict[str, float]:
    """Return module → relative distance, of modules that differ by more than rounding."""
    return {
        site.name: moments.distance
        for site, moments in found.sites.items()
        if moments.distance > ROUNDED
    }
