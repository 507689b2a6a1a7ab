"""Archives are untrusted: what is unpacked, and what is refused."""

from __future__ import annotations

import stat
import zipfile

import pytest

from anytune.data.samples.archives import read_member, safe_path, unpack
from anytune.errors import SampleError

from .conftest import deb_archive, tar_archive, tar_bytes, zip_archive

GOOD = {"data/a.txt": b"alpha", "data/deep/b.txt": b"beta", "code.py": b"boom()", "data/model.pkl": b"pickle"}


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("make", [zip_archive, tar_archive, deb_archive], ids=["zip", "tar.gz", "deb"])
def test_only_wanted_data_members_are_unpacked(make, tmp_path, out):
    names = unpack(make(tmp_path / "archive", GOOD), out, ["data/*.txt"])
    assert names == ["data/a.txt", "data/deep/b.txt"]
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == names
    assert (out / "data/deep/b.txt").read_bytes() == b"beta"


def test_a_debian_package_may_be_packed_with_gzip(tmp_path, out):
    assert unpack(deb_archive(tmp_path / "a.deb", GOOD, kind="gz"), out, ["data/a.txt"]) == ["data/a.txt"]


@pytest.mark.parametrize("name", ["../out.txt", "/etc/passwd.txt", "data/../../x.txt", "C:/x.txt", "data\\..\\x.txt"])
@pytest.mark.parametrize("make", [zip_archive, tar_archive, deb_archive], ids=["zip", "tar.gz", "deb"])
def test_a_member_that_would_leave_the_folder_is_refused(make, name, tmp_path, out):
    archive = make(tmp_path / "archive", {name: b"x"})
    with pytest.raises(SampleError):
        unpack(archive, out, ["*.txt"])
    assert not list(tmp_path.rglob("*.txt"))


@pytest.mark.parametrize("target", ["/etc/passwd", "../../x", "data/a.txt"])
def test_a_link_is_refused_even_inside_the_folder(target, tmp_path, out):
    archive = tar_archive(tmp_path / "a.tar.gz", {"data/a.txt": b"x"}, {"data/link.txt": target})
    with pytest.raises(SampleError, match=r"link\.txt.*not a regular file"):
        unpack(archive, out, ["data/*.txt"])


def test_a_link_in_a_zip_is_refused(tmp_path, out):
    info = zipfile.ZipInfo("data/link.txt")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(SampleError, match="not a regular file"):
        unpack(tmp_path / "a.whl", out, ["data/*"])


@pytest.mark.parametrize("name", ["data/model.pkl", "data/heads.pt", "code.py", "data/weights.PICKLE"])
def test_pickles_and_code_are_refused_by_name(name, tmp_path, out):
    with pytest.raises(SampleError, match="refusing to unpack"):
        unpack(zip_archive(tmp_path / "a.zip", {name: b"x"}), out, ["*"])
    assert not list(out.iterdir())


@pytest.mark.parametrize("make", [zip_archive, tar_archive], ids=["zip", "tar.gz"])
def test_a_bomb_stops_at_the_size_limit(make, tmp_path, out):
    archive = make(tmp_path / "archive", {"zeros.txt": bytes(5_000_000)})
    assert archive.stat().st_size < 6_000_000
    with pytest.raises(SampleError, match="more than 100,000 bytes"):
        unpack(archive, out, ["*.txt"], max_bytes=100_000)


def test_a_member_that_occurs_twice_is_refused(tmp_path, out):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.txt", "second")
    with pytest.raises(SampleError, match="twice"):
        unpack(tmp_path / "a.zip", out, ["*.txt"])


@pytest.mark.parametrize("make", [zip_archive, tar_archive, deb_archive], ids=["zip", "tar.gz", "deb"])
def test_a_truncated_archive_is_a_clear_error(make, tmp_path, out):
    archive = make(tmp_path / "archive", {"a.txt": bytes(range(256)) * 400})
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(SampleError, match="damaged"):
        unpack(archive, out, ["*.txt"])


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"!<arch>\nrubbish", b"PK rubbish"])
def test_a_file_that_is_no_archive_is_a_clear_error(content, tmp_path, out):
    (tmp_path / "a.whl").write_bytes(content)
    with pytest.raises(SampleError):
        unpack(tmp_path / "a.whl", out, ["*.txt"])


def test_an_archive_without_the_wanted_members_is_named(tmp_path, out):
    with pytest.raises(SampleError, match=r"holds no other/\*"):
        unpack(zip_archive(tmp_path / "a.zip", GOOD), out, ["data/*.txt", "other/*"])


def test_an_archive_inside_an_archive_can_be_read(tmp_path):
    inner = tar_bytes({"x/data.txt": b"inside"}, kind="gz")
    outer = zip_archive(tmp_path / "a.zip", {"p/inner.tar.gz": inner, "p/setup.py": b"boom()"})
    assert read_member(outer, "p/*.tar.gz") == inner
    with pytest.raises(SampleError, match="holds no"):
        read_member(outer, "q/*")


def test_a_package_packed_with_zstd_goes_through_dpkg(tmp_path, out, fake_client, monkeypatch):
    (tmp_path / "plain.tar").write_bytes(tar_bytes({"./data/a.txt": b"alpha"}, kind=""))
    archive = deb_archive(tmp_path / "a.deb", GOOD, kind="gz")
    archive.write_bytes(archive.read_bytes().replace(b"data.tar.gz     ", b"data.tar.zst    "))
    calls = fake_client("dpkg-deb", f"cat {tmp_path / 'plain.tar'}")
    assert unpack(archive, out, ["data/*.txt"]) == ["data/a.txt"]
    assert calls.read_text().split() == ["--fsys-tarfile", str(archive)]
    fake_client("dpkg-deb", "echo broken >&2; exit 2")
    with pytest.raises(SampleError, match="damaged: broken"):
        unpack(archive, out, ["data/*.txt"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SampleError, match="needs dpkg-deb"):
        unpack(archive, out, ["data/*.txt"])


def test_ordinary_paths_are_safe():
    assert safe_path("usr/share/dictd/foldoc.dict.dz").name == "foldoc.dict.dz"
