"""Measure a trained model, or compare two sets of images: `python -m fastlatent.evaluate RUN`."""

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro
from torch import Tensor

from fastlatent import plots
from fastlatent.commands.console import command, parse
from fastlatent.commands.evaluation.extractors import (
    Extractor,
    Kind,
    classifier_of,
    open_extractor,
)
from fastlatent.commands.evaluation.given import (
    Given,
    Opened,
    Reading,
    at_size_of,
    compare,
    count_of,
    open_set,
    own_folder,
    take_features,
    what_is_learnt,
)
from fastlatent.commands.evaluation.priors import bounds_under, stored_priors, table_of
from fastlatent.commands.evaluation.report import Comparisons, Losses
from fastlatent.commands.evaluation.sets import features_of, made_by_model, real_images
from fastlatent.commands.trained import RunOptions, Trained
from fastlatent.data.config import BINARY_SIZES
from fastlatent.files.image_files import BACKGROUND, check_background
from fastlatent.files.reading import read_json
from fastlatent.inference.devices import choose_device
from fastlatent.inference.latents import Repair
from fastlatent.inference.passes import measure, measure_bound, reconstruction_error
from fastlatent.jobs.environment import check_launch
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.progress import say
from fastlatent.jobs.ranks import is_main_process, joined
from fastlatent.metrics import Weighing
from fastlatent.metrics.features import distance_name, jpeg_round_trip, to_uint8
from fastlatent.metrics.sets import SEED
from fastlatent.models import LaDDer, LVAEConfig
from fastlatent.priors import Prior, PriorKind
from fastlatent.runs.files import RESULTS, fingerprint, write_json

DESCRIPTION = """Measure a trained model on all images of a split, with standard errors.
- every model: the loss and its parts, and the squared error of the pixels of reconstructions
- every model: samples of each method, reconstructions and interpolations next to the real images,
  by Frechet and kernel distance, precision, recall, density, coverage and the F of PRD
- VAE, Ladder VAE, LaDDer: ELBO, reconstruction and KL; --samples K: also the importance-weighted
  bound on the log-likelihood, of K draws of the latents
- priors that fit_prior has fitted to the run: their samples, and of LaDDer the bounds under them
- two sets in place of a run, --real and --fake: folders of images, or .npz of images or features

Sets are compared by features: of a small classifier that learns the data set's own training images
(by default, where it has labels), of the Inception network, or of DINOv2. What is called FID is
taken with the Inception network, else it is FD(classifier) or FD(dinov2).

The numbers are printed, stored as evaluation.json in the run folder, or in --folder for two sets,
and added as a line to results.jsonl beside it; PRD curves are drawn as prd.png, the KL of layers as
kl-layers.png. Standard errors take images as independent, reconstructions as pairs with the images
they are of. Under torchrun each process takes a share of a run's images; two sets are compared by
one process.

Examples:
  python -m fastlatent.evaluate runs/lbae-digits
  python -m fastlatent.evaluate runs/lvae-digits --samples 100 --features none
  python -m fastlatent.evaluate runs/lbae-celeba --features inception --jpeg
  python -m fastlatent.evaluate --real folder --fake samples.npz --features inception
  torchrun --nproc-per-node 2 -m fastlatent.evaluate runs/lbae-mnist"""


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line."""

    run: tyro.conf.Positional[Path | None] = None
    """Run folder, as training or convert left it; none with --real and --fake."""
    seed: int | None = None
    """Seed of everything random here; default: the run's, and 12345 with --real and --fake."""
    split: Literal["test", "train"] = "test"
    """Which images to measure on, and to compare with."""
    samples: int | None = None
    """Draws of the latents for the importance-weighted bound; default: no such bound."""
    limit: int | None = None
    """Only so many images, evenly spread, and sets of so many; default: all."""
    features: Kind | Literal["auto", "none"] = "auto"
    """Whose features sets are compared by; auto: a classifier's where the data has labels, and the
    features themselves of .npz files that hold them."""
    feature_weights: Path | None = None
    """File of the weights of --features inception (default: downloaded once) or dinov2."""
    feature_name: str | None = None
    """Name of the DINOv2 network, if the weights lie in a clone of its repository, whose code then
    runs."""
    trust_feature_code: bool = False
    """Load --features dinov2 from a file of TorchScript or torch.export, which can run any code."""
    reference: Path | None = None
    """Compare with these real images or their features, a folder or an .npz file; default: with
    the images of the split."""
    data: str | None = None
    """With --real and --fake: data set whose training images a classifier learns."""
    real: Path | None = None
    """Real images or their features: a folder, or an .npz file."""
    fake: Path | None = None
    """Images or features to compare with them."""
    size: tuple[int, ...] = ()
    """With --real and --fake: side, or height and width, that images are resized to; default: as
    they are, in folders of one size."""
    channels: Literal[1, 3] | None = None
    """With --real and --fake: channels of images; default: those of --data, else those of the first
    image of a set. Colour images become grey only where all their pixels are grey."""
    key: tuple[str, ...] = ()
    """Name of the array in .npz files, or one for --real and one for --fake."""
    recursive: bool = True
    """Read the folders below a folder of images, too."""
    background: str = BACKGROUND
    """What transparent pixels of image files are laid on: white, black or #rrggbb."""
    jpeg: bool = False
    """Store all images as JPEG before their features are taken, as the published protocol of the
    LBAE does; default: in 8 bits."""
    repair: Repair = "clip"
    """What gives way where the moments of the codes fit no copula (bits)."""
    folder: Path | None = None
    """With --real and --fake: where the numbers and the picture go; default: evaluation-FAKE, with
    a number behind it where that holds the numbers of other sets."""
    results: Path | None = None
    """File to which a line of all numbers is added; default: results.jsonl beside the run, or
    beside the folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("samples", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1; got {value}")
        if (self.real is None) != (self.fake is None):
            raise ValueError("--real and --fake go together")
        if (self.run is None) == (self.real is None):
            raise ValueError("name a run folder, or two sets by --real and --fake")
        if self.data is not None and self.run is not None:
            raise ValueError("--data goes with --real and --fake; a run knows its data set")
        if self.folder is not None and self.run is not None:
            raise ValueError("--folder goes with --real and --fake; a run has its own")
        for name, given in (("size", bool(self.size)), ("channels", self.channels is not None)):
            if given and self.run is not None:
                raise ValueError(f"--{name} goes with --real and --fake; a run knows its own")
        for name, given in (
            ("key", bool(self.key)),
            ("no-recursive", not self.recursive),
            ("background", self.background != BACKGROUND),
        ):
            if given and self.real is None and self.reference is None:
                raise ValueError(f"--{name} goes with two sets of images, or with a reference")
        if len(self.size) > 2 or any(side < 1 for side in self.size):
            raise ValueError(f"--size must be a side, or height and width; got {self.size}")
        if len(self.key) > (1 if self.real is None else 2):
            raise ValueError("--key names one array, or one for --real and one for --fake")
        check_background("--background", self.background)
        of_runs = {
            "reference": self.reference is not None,
            "samples": self.samples is not None,
            "split": self.split != "test",
            "weights": self.weights != "last",
        }
        for name, given in of_runs.items():
            if given and self.run is None:
                raise ValueError(f"--{name} goes with a run, and not with --real and --fake")
        if self.feature_weights is not None and self.features not in ("inception", "dinov2"):
            raise ValueError("--feature-weights goes with --features inception or dinov2")
        if self.feature_name is not None and self.features != "dinov2":
            raise ValueError("--feature-name goes with --features dinov2")

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width that images are resized to; None: as they are."""
        return (self.size[0], self.size[-1]) if self.size else None

    def reading(
        self, size: tuple[int, int] | None, channels: int | None, place: int = 0
    ) -> Reading:
        """How the real set (place 0) or the other is read."""
        key = (self.key * 2)[place] if self.key else None
        limit = None if self.real is None else self.limit
        return Reading(size, channels, key, self.recursive, self.background, limit)

    @property
    def transform(self) -> Callable[[Tensor], Tensor]:
        """What images pass through before their features are taken."""
        return partial(jpeg_round_trip, rgb=self.features == "inception") if self.jpeg else to_uint8


@command(shared=True)
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and evaluate."""
    options = parse(Options, argv, "evaluate", DESCRIPTION)
    check_launch()
    if options.run is not None:
        with joined(choose_device(options.device)):
            evaluate_run(options)
    elif is_main_process():
        evaluate_sets(options)


def evaluate_run(options: Options) -> None:
    """Losses and comparisons of a trained model."""
    trained = Trained(options)
    model, seed, batch = trained.model, trained.seed, trained.batch
    if options.samples is not None and not isinstance(model, Weighing):
        family = trained.run.config.model.family
        raise UsageError(
            f"--samples needs a model with a likelihood, vae, lvae or ladder; this is {family}"
        )
    split = trained.split(options.split)
    images = min(options.limit or len(split), len(split))
    kind = features_kind(options, trained, images)
    given = None
    if options.reference is not None and kind is not None:
        channels, height, width = model.image_shape
        reading = options.reading((height, width), channels)
        given = open_set(options.reference.expanduser(), reading, network=True)
    means = measure(model, split, batch, seed, options.limit)
    pixels = reconstruction_error(model, split, batch, seed, options.limit)
    bound = None
    if options.samples is not None:
        bound = measure_bound(model, split, options.samples, batch, seed, options.limit)
    units = {name: model.unit_of(name) for name in means}
    losses = Losses(means, pixels, bound, options.samples, units, bits_per_nat(trained))
    say(f"{options.split} split of {trained.data.name}, {images:,} images:")
    say("\n".join(losses.lines()))

    path = trained.run.path / "evaluation.json"
    found = {
        "weights": options.weights,
        "fingerprint": fingerprint(trained.run.weights_file(options.weights)),
        "data": trained.data.name,
        "split": options.split,
        "images": images,
        "seed": seed,
        "batch": batch,
        "values": losses.values(),
    }
    before = compared_before(path, found)
    if is_main_process():
        write_json(path, found | before)
    priors = stored_priors(trained)
    if priors and isinstance(model, LaDDer):
        under = bounds_under(model, priors, split, batch, seed, options.samples, options.limit)
        say("\n".join(table_of(under)))
        found["priors"] = {name: row.values() for name, row in under.items()}
    compared = None
    if kind is not None:
        compared = compare_with_real(options, trained, kind, given, images, priors)
        found |= {"jpeg": options.jpeg, **compared.values()}
        say("\n".join(compared.lines()))
    if not is_main_process():
        return
    write_json(path, found if compared is not None else found | before)
    say(f"numbers: {path}")
    results = options.results or trained.run.path.parent / RESULTS
    append_line(results, {"run": str(trained.run.path)} | found)
    if compared is not None:
        draw_prd(compared, trained.place(None, "prd"), trained.subject)
    layers = [mean for name, mean in means.items() if name.startswith("kl_layer_")]
    if layers:
        title = f"KL of each layer, {options.split} split"
        values, errors = zip(*layers, strict=True)
        picture = plots.layer_bars(values, errors, title, model.unit_of("kl"))
        say(f"picture: {trained.draw(picture, trained.place(None, 'kl-layers'))}")


def compared_before(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The comparisons that an earlier evaluation of the same weights and images left in `path`."""
    same = ("weights", "fingerprint", "data", "split", "images", "seed")
    try:
        earlier = read_json(path)
        if any(earlier[name] != found[name] for name in same):
            return {}
        return {name: earlier[name] for name in ("jpeg", "features", "sets")}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def features_kind(options: Options, trained: Trained, images: int) -> Kind | None:
    """Whose features sets are compared by; None, said, where there is nothing to go by."""
    labelled = trained.data.label_names is not None
    if options.features == "none" or (options.features == "auto" and not labelled):
        if options.features == "auto":
            say(f"{trained.data.name} has no labels to learn features from: name --features")
        return None
    if images < 2:
        say("a single image is no set to compare with")
        return None
    return "classifier" if options.features == "auto" else options.features


def compare_with_real(
    options: Options,
    trained: Trained,
    kind: Kind,
    given: Opened | None,  # the reference; None: images of the split
    images: int,
    priors: dict[PriorKind, Prior],
) -> Comparisons:
    """The model's sets of images next to the real ones."""
    extractor = open_extractor(
        kind,
        options.feature_weights,
        options.feature_name,
        (trained.run.config.data, trained.data),
        trained.device,
        options.trust_feature_code,
    )
    say(f"features: {extractor.about}")
    transform = options.transform
    batch = min(trained.batch, images)
    train, test = trained.split("train"), trained.split(options.split)
    if given is None:
        reference = f"{images:,} {options.split} images of {trained.run.config.data.short}"
        shown = real_images(test, images, batch, trained.device)
        real: Given = features_of(shown, extractor.features, batch, transform)
    else:
        reference, size = str(options.reference), trained.model.image_shape[1:]
        real = take_features(given, extractor, transform, trained.device, batch, size)
    copula = trained.copula(options.repair)
    made = made_by_model(trained.model, train, test, images, batch, trained.seed, copula, priors)
    compared = comparisons(extractor, reference, count_of(real))
    for images_of in made:
        fake = features_of(images_of, extractor.features, batch, transform)
        if is_main_process() and len(fake) > 1:
            paired = images_of.copies and given is None
            compared.sets[images_of.name] = compare(real, fake, trained.seed, paired=paired)
            compared.counts[images_of.name] = len(fake)
    return compared


def comparisons(extractor: Extractor | None, reference: str, count: int | None) -> Comparisons:
    """No set yet next to the reference of so many images; None: features come as they are."""
    known = {"reference": reference, "reference_images": count}
    if extractor is None:
        about = {"extractor": "features as given", "short": "features"}
        return Comparisons(distance_name(None), about | known)
    about = {"extractor": extractor.about, "short": extractor.short}
    return Comparisons(distance_name(extractor.features), about | known)


def evaluate_sets(options: Options) -> None:
    """Two sets of images or features that programs of any kind have made."""
    assert options.real is not None and options.fake is not None
    device = choose_device(options.device)
    kind: Kind | Literal["auto", "none"] = options.features
    if kind == "auto" and options.data is not None:
        kind = "classifier"
    extractor = learnt = None
    if kind == "classifier" and options.data is not None:
        # It is trained last, when all that it is to see has been looked at.
        learnt = what_is_learnt(options.data, options.root, options.sides, options.channels)
    elif kind not in ("auto", "none"):
        extractor = open_extractor(
            kind,
            options.feature_weights,
            options.feature_name,
            None,
            device,
            options.trust_feature_code,
        )
    channels = options.channels if learnt is None else learnt[1].train.shape[0]
    network = extractor is not None or learnt is not None
    sets = [
        open_set(path.expanduser(), options.reading(options.sides, channels, place), network)
        for place, path in enumerate((options.real, options.fake))
    ]
    if learnt is not None:
        learnt = at_size_of(sets, *learnt)
        extractor = classifier_of(*learnt, device)
    if extractor is not None:
        say(f"features: {extractor.about}")
    real, fake = (
        take_features(opened, extractor, options.transform, device, options.batch, options.sides)
        for opened in sets
    )
    if options.jpeg and extractor is None:
        raise UsageError(f"--jpeg goes with images; {options.real} holds features already")
    compared = comparisons(extractor, str(options.real), count_of(real))
    name = options.fake.name or str(options.fake)
    seed = SEED if options.seed is None else options.seed
    compared.sets[name] = compare(real, fake, seed)
    compared.counts[name] = count_of(fake)
    say(f"{options.fake} next to {options.real}:")
    say("\n".join(compared.lines()))
    folder = (options.folder or own_folder(options.real, options.fake)).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "real": str(options.real),
        "fake": str(options.fake),
        "seed": seed,
        "jpeg": options.jpeg,
        **compared.values(),
    }
    write_json(folder / "evaluation.json", found)
    say(f"numbers: {folder / 'evaluation.json'}")
    append_line(options.results or folder.parent / RESULTS, found)
    draw_prd(compared, folder / "prd.png", str(options.fake))


def draw_prd(compared: Comparisons, path: Path, subject: str) -> None:
    """The PRD curves, where there are any."""
    if any(scores.prd for scores in compared.sets.values()):
        say(f"picture: {plots.save(compared.picture(), path, subject)}")


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Add a line of JSON to a file of results."""
    path = path.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
    with path.open("a") as file:
        file.write(json.dumps({"time": stamp} | values) + "\n")


def bits_per_nat(trained: Trained) -> float | None:
    """Bits per pixel and channel that a nat per image is; None unless images have a probability.

    A Gaussian gives densities, and grey images have none under a Bernoulli distribution.
    """
    config = trained.run.config
    if not isinstance(config.model, LVAEConfig) or config.model.likelihood == "gaussian":
        return None
    if config.model.likelihood == "bernoulli" and config.data.kind not in BINARY_SIZES:
        return None
    return 1 / (math.prod(config.model.image_shape) * math.log(2))


if __name__ == "__main__":
    sys.exit(main())
