"""The `data` section: which examples there are, what they are for, and who holds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from qsfl_flower.simulations.config.base import (
    Contradiction,
    OptionValues,
    PlaceText,
    Section,
    options_of,
    refuse,
)


class IidSpec(Section):
    """Examples are dealt out at random, in equal shares."""

    scheme: Literal["iid"] = Field(description="Name of the scheme.")


class DirichletSpec(Section):
    """Each class is split by proportions drawn from a symmetric Dirichlet distribution."""

    scheme: Literal["dirichlet"] = Field(description="Name of the scheme.")
    alpha: float = Field(gt=0, description="Concentration: 0.1 is very uneven, 100 nearly even.")
    min_size: int = Field(
        default=10, ge=1, le=10**9, description="Fewest examples that a client may get (examples)."
    )


class ShardsSpec(Section):
    """Examples sorted by class are cut into shards and each client gets some of them."""

    scheme: Literal["shards"] = Field(description="Name of the scheme.")
    shards_per_client: int = Field(
        ge=1, le=10**6, description="Shards that a client gets; 2 gives it about two classes."
    )


class WriterSpec(Section):
    """Every client holds the digits of one or more people: mnist with mnist_writers.npz."""

    scheme: Literal["writer"] = Field(description="Name of the scheme.")


class NaturalSpec(Section):
    """Every client holds the examples of one or more ids: `id_column` of a table, `id_train`."""

    scheme: Literal["natural"] = Field(description="Name of the scheme.")


PartitionSpec = Annotated[
    IidSpec | DirichletSpec | ShardsSpec | WriterSpec | NaturalSpec, Field(discriminator="scheme")
]

LOSSES = {
    "classes": ("cross-entropy",),
    "labels": ("binary-cross-entropy",),
    "values": ("mse", "l1", "huber"),
}
"""Names by the task of the data; the first is the task's own."""

KNOWN = ("digits", "mnist", "fashion-mnist", "cifar10")
_FILES = {"npz": "an .npz file", "table": "a .csv or .parquet file"}


Names = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1, max_length=256)], ...],
    Field(strict=False, max_length=1000),
]


class DataSpec(Section):
    """Which examples there are and who holds them."""

    dataset: Literal["digits", "mnist", "fashion-mnist", "cifar10", "npz", "table", "images"] = (
        Field(
            default="digits",
            description="Data set; digits comes with scikit-learn and needs no network; npz, table "
            "and images are files of your own.",
        )
    )
    options: OptionValues = options_of("dataset", "a data set that a plugin brings")
    root: PlaceText | None = Field(
        default=None,
        description="Folder that holds mnist, fashion-mnist or cifar10 (null: $QSFL_DATA_DIR), or "
        "the pictures of images, a folder for each class as torchvision has them. A relative path "
        "starts at the working folder.",
    )
    file: PlaceText | None = Field(
        default=None,
        description="The .npz file of dataset npz, or the .csv or .parquet file of table, which "
        "need it; null for the others.",
    )
    task: Literal["classes", "labels", "values"] = Field(
        default="classes",
        description="What is predicted: one of several classes; labels, each 0 or 1, of which an "
        "example may have several; or values (regression).",
    )
    targets: Names = Field(
        default=(),
        description="Columns of table that are predicted, which it needs: one for classes; all "
        "others are features, texts one feature for each of them.",
    )
    id_column: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = Field(
        default=None,
        description="Column of table that says whose an example is, for partition natural; null: "
        "none. It is no feature.",
    )
    picture_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Height and width to which the pictures of images are scaled (pixels); null: "
        "they must have one size.",
    )
    download: bool = Field(
        default=False, description="Fetch the data set into the folder when it is not there."
    )
    test_fraction: float = Field(
        default=0.0,
        ge=0,
        le=0.9,
        description="Share of each client's examples held out for its own evaluation; "
        "0: evaluation is on the server, with the data set's test split.",
    )
    partition: PartitionSpec = Field(
        default=IidSpec(scheme="iid"),
        description="How the training examples are spread over clients.",
    )

    @model_validator(mode="after")
    def _npz_fits(self) -> Self:
        kind = _FILES.get(self.dataset)
        found = [*self._own_files()]
        if kind and self.file is None:
            found.append(
                Contradiction(
                    ("data.dataset", "data.file"),
                    f"dataset {self.dataset!r} needs a file; set data.file to the path of {kind}",
                )
            )
        if not kind and self.file is not None:
            found.append(
                Contradiction(
                    ("data.file", "data.dataset"),
                    f"dataset {self.dataset!r} reads no file, only 'npz' and 'table' do; "
                    "set data.dataset to one of them or data.file to null",
                )
            )
        if isinstance(self.partition, WriterSpec) and self.dataset != "mnist":
            found.append(
                Contradiction(
                    ("data.partition.scheme", "data.dataset"),
                    f"nobody knows who made the examples of dataset {self.dataset!r}, only those "
                    "of 'mnist'; set data.dataset to mnist or choose another scheme",
                )
            )
        if self.download and (kind or self.dataset == "images"):
            found.append(
                Contradiction(
                    ("data.download", "data.dataset"),
                    f"dataset {self.dataset!r} cannot be downloaded; set data.download to false",
                )
            )
        refuse(found)
        return self

    def _own_files(self) -> Iterator[Contradiction]:
        table, scheme = self.dataset == "table", self.partition.scheme
        if table and not self.targets:
            yield Contradiction(
                ("data.targets", "data.dataset"),
                "dataset 'table' needs the columns that are predicted; name them in data.targets",
            )
        for name in ("targets", "id_column"):
            if getattr(self, name) and not table:
                yield Contradiction(
                    (f"data.{name}", "data.dataset"),
                    f"dataset {self.dataset!r} has no columns, only 'table' has; set data.dataset "
                    f"to table or leave data.{name} out",
                )
        if self.task == "classes" and len(self.targets) > 1:
            yield Contradiction(
                ("data.targets", "data.task"),
                f"{len(self.targets)} columns hold no single class; set data.task to labels or "
                "values, or name one column",
            )
        if self.task != "classes" and self.dataset in KNOWN:
            yield Contradiction(
                ("data.task", "data.dataset"),
                f"the examples of dataset {self.dataset!r} have one class each; set data.task to "
                "classes",
            )
        if self.task != "classes" and scheme in ("dirichlet", "shards"):
            yield Contradiction(
                ("data.partition.scheme", "data.task"),
                f"scheme {scheme!r} divides classes, and task {self.task!r} has none; set "
                "data.partition.scheme to iid or natural",
            )
        if scheme == "natural" and not (self.id_column or self.dataset not in (*KNOWN, "table")):
            yield Contradiction(
                ("data.partition.scheme", "data.id_column"),
                f"nobody knows whose the examples of dataset {self.dataset!r} are; name "
                "data.id_column of a table, or choose another scheme",
            )
        if self.dataset == "images" and self.root is None:
            yield Contradiction(
                ("data.root", "data.dataset"),
                "dataset 'images' needs a folder; set data.root to it",
            )
        if self.picture_size is not None and self.dataset != "images":
            yield Contradiction(
                ("data.picture_size", "data.dataset"),
                f"only pictures of dataset 'images' are scaled, not {self.dataset!r}; set "
                "data.picture_size to null",
            )
