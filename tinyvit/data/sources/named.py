"""The datasets that have a name: where each may be on this machine, and where it is to be had."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tinyvit.data.datasets import DataError, Dataset, Reading
from tinyvit.data.download import RemoteFile, cache_folder, download
from tinyvit.data.sources.cifar import find_cifar, load_cifar
from tinyvit.data.sources.digits import LICENCE, digits
from tinyvit.data.sources.idx import FILES, find_idx, load_idx

SYSTEM = Path("/usr/share/datasets")  # where Debian's packages put datasets: dataset-fashion-mnist


@dataclass(frozen=True)
class NamedSet:
    """A dataset that is known by name.

    Args:
        name: what users call it.
        licence: the terms, and whom to credit.
        source: the publication to cite.
        mirrors: addresses of folders that hold the files; the first that works is used.
        files: what is downloaded; none where the dataset comes with tinyvit.
        classes: their names, where the files do not tell.
    """

    name: str
    licence: str
    source: str
    mirrors: tuple[str, ...] = ()
    files: tuple[RemoteFile, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(file.size for file in self.files)

    def find(self) -> Path | None:
        """Return the folder on this machine that holds the dataset, or None: in the cache, or from a package.

        Files found are checked by their reader, not by their digest, which a package may well have changed by
        compressing them anew; those that tinyvit downloads are checked by both.
        """
        if not self.files:
            return Path(__file__).parents[1] / self.name
        return next((folder for folder in (self.folder, SYSTEM / self.name) if _is_complete(folder)), None)

    @property
    def folder(self) -> Path:
        """Where in the cache the files are, or would be."""
        return cache_folder() / self.name

    def get(self, offline: bool = False) -> Path:
        """Return the folder of the dataset, after downloading it if it is not on this machine.

        Raises:
            DataError: where it must not be downloaded (`offline`, or TINYVIT_OFFLINE=1), or cannot be.
        """
        if folder := self.find():
            return folder
        if offline or os.environ.get("TINYVIT_OFFLINE", "") not in ("", "0"):
            files = ", ".join(self._missing())
            raise DataError(f"{self.name} is not here, and tinyvit is offline: put {files} into {self.folder}")
        for file in self.files:
            try:
                download(file, self.folder, self.mirrors)
            except DataError as error:
                others = ", ".join(name for name in self._missing() if name != file.name)
                raise DataError(
                    f"{error}, and with it what else is missing: {others}" if others else str(error)
                ) from error
        return self.folder

    def _missing(self) -> list[str]:
        return [file.name for file in self.files if not (self.folder / file.name).exists()]

    def load(self, reading: Reading = Reading()) -> Dataset:
        """Return the dataset; see `get` for where it comes from."""
        if not self.files:
            return digits()
        folder = self.get(reading.offline)
        data = load_idx(folder, reading, self.classes) if find_idx(folder) else load_cifar(folder, reading)
        return replace(data, name=self.name, licence=self.licence)


def _is_complete(folder: Path) -> bool:
    return folder.is_dir() and (len(find_idx(folder)) == len(FILES) or find_cifar(folder) is not None)


def _four_files(*sizes_and_digests: tuple[int, str]) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(f"{n}.gz", *rest) for n, rest in zip(FILES.values(), sizes_and_digests, strict=True))


# Sizes and digests are those that TensorFlow Datasets publishes (tensorflow_datasets/url_checksums).
_TABLE: Sequence[NamedSet] = (
    NamedSet("digits", LICENCE, "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998"),
    NamedSet(
        "mnist",
        "CC BY-SA 3.0: Y. LeCun and C. Cortes",
        "Y. LeCun, C. Cortes and C. Burges, MNIST handwritten digit database, 2010, http://yann.lecun.com/exdb/mnist",
        (
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ),
        _four_files(
            (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
        tuple("0123456789"),
    ),
    NamedSet(
        "fashion-mnist",
        "MIT: Zalando SE",
        "H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, arXiv:1708.07747, 2017",
        (
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        _four_files(
            (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    NamedSet(
        "kmnist",
        "CC BY-SA 4.0: KMNIST Dataset, created by CODH, adapted from Kuzushiji Dataset, doi:10.20676/00000341",
        "T. Clanuwat et al., Deep Learning for Classical Japanese Literature, arXiv:1812.01718, 2018",
        ("https://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        _four_files(
            (18165135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
            (29497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
            (3041136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
            (5120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
        ),
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
    NamedSet(
        "cifar10",
        "no licence stated; cite the source",
        "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        ("https://www.cs.toronto.edu/~kriz/",),
        (
            RemoteFile(
                "cifar-10-binary.tar.gz",
                170052171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
    ),
    NamedSet(
        "cifar100",
        "no licence stated; cite the source",
        "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        ("https://www.cs.toronto.edu/~kriz/",),
        (
            RemoteFile(
                "cifar-100-binary.tar.gz",
                168513733,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            ),
        ),
    ),
)

DATASETS = {named.name: named for named in _TABLE}
