"""The demonstration model, joined from the parts that four installed packages hold; made-up packages here."""

import hashlib
from importlib.metadata import PackageNotFoundError, PackagePath

import pytest

from jaxalign import loading
from jaxalign.errors import InputError
from jaxalign.loading import PACKAGED, PACKAGED_PARTS, packaged_gguf

WHOLE = b"GGUF, a model in four parts"
CUTS = (0, 4, 11, 20, len(WHOLE))


class Site:
    """A folder of installed packages; `installed` lists the files of each."""

    def __init__(self, folder):
        self.folder = folder
        self.installed = {}

    def locate_file(self, path):
        return self.folder / path


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Four installed packages, each with a part of `WHOLE`, and an empty cache beside them."""
    site = Site(tmp_path / "site")
    for number, name in enumerate(PACKAGED_PARTS, start=1):
        part = PackagePath(f"part{number}/model.gguf.part{number}")
        (site.folder / part).parent.mkdir(parents=True)
        (site.folder / part).write_bytes(WHOLE[CUTS[number - 1] : CUTS[number]])
        site.installed[name] = [PackagePath(f"part{number}/__init__.py"), part]
        for path in site.installed[name]:
            path.dist = site

    def files(name):
        if name not in site.installed:
            raise PackageNotFoundError(name)
        return site.installed[name]

    monkeypatch.setattr("importlib.metadata.files", files)
    monkeypatch.setattr(loading, "PACKAGED_SHA256", hashlib.sha256(WHOLE).hexdigest())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return site


@pytest.fixture
def cached(tmp_path):
    return tmp_path / "cache" / "jaxalign" / PACKAGED


def left(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_the_parts_are_joined_in_order_into_the_cache(site, cached, tmp_path):
    assert packaged_gguf() == cached
    assert cached.read_bytes() == WHOLE
    assert left(tmp_path) == [cached]


def test_the_joined_file_is_used_again(site, cached):
    packaged_gguf()
    written = cached.stat().st_mtime_ns
    site.installed.clear()
    assert packaged_gguf() == cached
    assert cached.stat().st_mtime_ns == written


def test_a_damaged_joined_file_is_made_anew(site, cached):
    packaged_gguf()
    cached.write_bytes(WHOLE[:-1])
    packaged_gguf()
    assert cached.read_bytes() == WHOLE


@pytest.mark.parametrize("absent", [False, True])
def test_other_parts_are_refused_and_nothing_is_left(site, tmp_path, absent):
    if absent:
        site.installed[PACKAGED_PARTS[0]].pop()
    (site.folder / site.installed[PACKAGED_PARTS[2]][1]).write_bytes(b"something else")
    with pytest.raises(InputError, match=r"sha256 .*reinstall"):
        packaged_gguf()
    assert left(tmp_path) == []


def test_a_missing_package_is_named_with_the_command(site, tmp_path):
    del site.installed[PACKAGED_PARTS[3]]
    with pytest.raises(InputError, match=rf"{PACKAGED_PARTS[3]} .*pip install .*demo.*model"):
        packaged_gguf()
    assert left(tmp_path) == []
