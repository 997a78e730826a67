"""The files of CIFAR-10 and CIFAR-100: binary or python version, in a folder or, without unpacking, in an official ``.tar.gz``."""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePosixPath

from rdc.data.contents import read_content
from rdc.errors import DataError
from rdc.storage.reading import reading
from rdc.storage.tar_archives import tar_members

__all__ = ["HOME_PAGE", "CifarFiles"]

HOME_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclasses.dataclass(frozen=True)
class CifarFiles:
    """Where the batches of one data set are.

    Args:
        title: the data set's name, for errors.
        folders: names of the folders in the archives.
        archives: names of the archives.
        batch: most bytes of a file, in either version.
        archive: most bytes of an unpacked archive.
        about: size of a file in words, for errors.
    """

    title: str
    folders: tuple[str, ...]
    archives: tuple[str, ...]
    batch: int
    archive: int
    about: str

    def find(self, places: list[Path], batches: tuple[str, ...], split: str) -> tuple[Path, dict[str, bytes]]:
        """The first source that has all batches, all of the binary or all of the python version, and their contents by file name.

        Raises:
            DataError: no place has them (all are listed), or what is there cannot be read.
        """
        for place in places:
            for source in self._sources(place):
                contents = self._contents(source, batches)
                if contents:
                    return source, contents
        raise DataError(
            f"{self.title}, {split} split: the batches {', '.join(batches)} (.bin, or python without an ending) not "
            "found together in",
            *(f"  {place}{'' if place.exists() else '  (does not exist)'}" for place in places),
            "rdc cannot download it (it has no formal licence). Get the binary or the python version from",
            f"  {HOME_PAGE}",
            "and name the .tar.gz or the unpacked folder with root=, or put it into one of these places",
        )

    def _sources(self, place: Path) -> list[Path]:
        candidates = [place, *(place / name for name in (*self.folders, *self.archives))]
        return [candidate for candidate in candidates if candidate.exists()]

    def _contents(self, source: Path, batches: tuple[str, ...]) -> dict[str, bytes] | None:
        if source.is_file():
            return self._of_archive(source, batches)
        for ending in (".bin", ""):
            paths = [source / f"{batch}{ending}" for batch in batches]
            if all(path.is_file() for path in paths):
                return {path.name: read_content(path, self.batch) for path in paths}
        return None

    def _of_archive(self, archive: Path, batches: tuple[str, ...]) -> dict[str, bytes] | None:
        """Contents by file name, of the version whose batches are complete first; never some of either."""
        found: dict[str, dict[str, bytes]] = {"": {}, ".bin": {}}
        advice = f"It is truncated, damaged or another file: get it again from {HOME_PAGE}"
        with reading(archive, DataError, f"a readable archive of {self.title}", advice):
            for name, size, content in tar_members(archive, self.archive):
                path = PurePosixPath(name)
                ending = ".bin" if path.name.endswith(".bin") else ""
                batch = path.name.removesuffix(ending)
                if batch not in batches or path.parent.name not in self.folders:
                    continue
                if size > self.batch:
                    raise DataError(f"{archive}: {path.name} has {size:,} bytes; a batch has about {self.about}")
                if path.name in found[ending]:
                    raise DataError(f"{archive}: has {path.name} more than once; get it again")
                found[ending][path.name] = content()
                if len(found[ending]) == len(batches):
                    return {f"{batch}{ending}": found[ending][f"{batch}{ending}"] for batch in batches}
        return None
