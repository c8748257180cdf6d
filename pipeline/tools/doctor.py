"""Look at the machine: what excl needs, what would make it faster, and what a report of an error should say of it."""

from __future__ import annotations

import ctypes
import dataclasses
import getpass
import importlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from pydantic.dataclasses import dataclass

from excl.datasets.video.backends import INSTALL, missing_reason
from excl.datasets.video.self_check import decoder_works
from excl.models.download import cache_folder
from excl.pipeline.config import STRICT
from excl.pipeline.execution.video_reading import num_cores

State = Literal["ok", "note", "WRONG"]
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg", "wmv3", "prores")
NETWORK_S = 5.0  # to wait for all servers together
MIN_FILES, MIN_DISK_GB, MIN_MEMORY_GB = 1024, 5.0, 4.0
VARIABLES = ("EXCL_CACHE", "EXCL_DEBUG", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TMPDIR", "SLURM_JOB_ID")
CGROUPS = {  # the files of version 2 and of version 1
    "memory": ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    "cpu": ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
}


@dataclass(frozen=True, config=STRICT)
class DoctorConfig:
    """Say whether this machine has what excl needs, and all that a report of an error should say of it.

    Paths are shown without your home folder and your name. The exit code is 1 if something that is needed is wrong."""

    offline: bool = False
    """Do not test whether the servers of the weights and of GloVe can be reached."""
    json: bool = False
    """Print one JSON object, for programs."""


@dataclasses.dataclass(frozen=True)
class DoctorFinding:
    """One thing that was looked at: WRONG if excl needs it, a note if little is lost without; `advice` says what to do."""

    name: str
    state: State
    text: str
    advice: str = ""


def run(config: DoctorConfig) -> list[DoctorFinding]:
    """Look at everything; what cannot be looked at is a finding too."""
    checks = [_versions, _packages, _decoding, _other_decoders, _processor, _memory, _gpu, _limits, _folders, _assets]
    checks += [] if config.offline else [_network]
    return [finding for check in [*checks, _environment] for finding in _findings(check)]


def _findings(check: Callable[[], Iterator[DoctorFinding]]) -> Iterator[DoctorFinding]:
    try:
        for finding in check():
            yield dataclasses.replace(finding, text=_private(finding.text), advice=_private(finding.advice))
    except Exception as error:  # noqa: BLE001  (a broken library may raise anything, and the rest matters all the more)
        text = _private(f"could not be checked ({type(error).__name__}: {error})")
        yield DoctorFinding(check.__name__.strip("_").replace("_", " "), "note", text, "put this line into your report")


def _private(text: str) -> str:
    """Return a text without the user's home folder and name."""
    home = os.path.expanduser("~")  # which is "~" for a user without one
    text = text.replace(home, "~") if home != "/" else text
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        return text
    return re.sub(rf"(?<=/){re.escape(name)}(?![\w.-])", "USER", text)


def _versions() -> Iterator[DoctorFinding]:
    libc = " ".join(platform.libc_ver())
    system = f"{platform.system()} {platform.release()}, {platform.machine()}, {libc}"
    yield DoctorFinding("excl", "ok", f"{importlib.metadata.version('excl')}, Python {platform.python_version()}, {system}")


def _packages() -> Iterator[DoctorFinding]:
    """Yield the versions of what excl requires, and each package that is missing, too old, or cannot be imported."""
    there = []
    for requirement in map(Requirement, importlib.metadata.requires("excl") or []):
        name, is_extra = requirement.name, "extra" in str(requirement.marker)
        if name == "excl":  # an extra that has other extras
            continue
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if requirement.marker is None:
                yield DoctorFinding(name, "WRONG", "not installed", f"`pip install '{requirement}'`")
            continue
        there.append(f"{name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            state: State = "note" if is_extra else "WRONG"
            text, advice = f"{version}, expected {requirement.specifier}", f"`pip install '{name}{requirement.specifier}'`"
            yield DoctorFinding(name, state, text, advice)
        elif not is_extra and (error := _import_error(name)):
            yield DoctorFinding(
                name, "WRONG", f"{version}, cannot be imported: {error}", f"`pip install --force-reinstall {name}`"
            )
    yield DoctorFinding("packages", "ok", ", ".join(dict.fromkeys(there)))


def _import_error(name: str) -> str | None:
    try:
        importlib.import_module(name.replace("-", "_"))
    except Exception as error:  # noqa: BLE001  (as above)
        return f"{type(error).__name__}: {error}"
    return None


def _decoding() -> Iterator[DoctorFinding]:
    import av  # noqa: PLC0415  (what is looked at may be missing: here and below)

    versions = ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in sorted(av.library_versions.items()))
    can, cannot = ([name for name in CODECS if (name in av.codecs_available) is there] for there in (True, False))
    text = f"PyAV {av.__version__} with FFmpeg {av.ffmpeg_version_info} ({versions}); decodes {', '.join(can)}"
    text += f"; lacks {', '.join(cannot)}" if cannot else ""
    if decoder_works():
        yield DoctorFinding("decoding", "ok", text)
    else:
        yield DoctorFinding(
            "decoding", "WRONG", f"a small video could not be written and read; {text}", "`pip install --force-reinstall av`"
        )


def _other_decoders() -> Iterator[DoctorFinding]:
    for backend in ("decord", "torchcodec", "torchcodec-cuda"):
        reason = missing_reason(backend)
        if reason is None:
            yield DoctorFinding(backend, "ok", "can be chosen by --backend")
        else:
            yield DoctorFinding(backend, "note", f"not available ({reason})", f"only if you want it: {INSTALL[backend]}")


def _processor() -> Iterator[DoctorFinding]:
    info = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{flag}\b", info)]
    quota = _cgroup("cpu").split()
    cores = f"{num_cores()} of {os.cpu_count()} cores may be used"
    if len(quota) == 2 and quota[0] != "max":
        cores += f", and the control group allows the time of {int(quota[0]) / int(quota[1]):.1f}"
    name = model[1] if model else platform.processor()
    yield DoctorFinding("processor", "ok", "; ".join(filter(None, (name, cores, " ".join(flags)))))


def _memory() -> Iterator[DoctorFinding]:
    total_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    limit = _cgroup("memory")
    limit_gb = min(total_gb, int(limit) / 1e9) if limit.isdecimal() else total_gb
    text = f"{total_gb:.1f} GB" + (f", of which the control group allows {limit_gb:.1f} GB" if limit_gb < total_gb else "")
    if limit_gb < MIN_MEMORY_GB:
        advice = "give it more memory, or extract with --decoders 1 and a smaller --chunk-frames"
        yield DoctorFinding("memory", "note", text, advice)
    else:
        yield DoctorFinding("memory", "ok", text)


def _gpu() -> Iterator[DoctorFinding]:
    import torch  # noqa: PLC0415

    driver = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", _read("/proc/driver/nvidia/version"))
    cuda = torch.version.cuda
    built = f"PyTorch {torch.__version__} is built " + (f"for CUDA {cuda}" if cuda else "without CUDA")
    if not torch.cuda.is_available():
        text = f"none that PyTorch can use; {built}" + (f"; NVIDIA driver {driver[1]}" if driver else "; no NVIDIA driver")
        advice = "a driver for this CUDA or newer, or a PyTorch for the driver" if driver else "nothing, if there is no GPU"
        yield DoctorFinding("GPU", "note", text, advice)
        return
    for index in range(torch.cuda.device_count()):
        name, facts = torch.cuda.get_device_name(index), torch.cuda.get_device_properties(index)
        text = f"{name}, {facts.total_memory / 1e9:.0f} GB, compute capability {facts.major}.{facts.minor}"
        try:
            works = torch.ones(2, device=f"cuda:{index}").sum().item() == 2
        except RuntimeError as error:
            works, text = False, f"{text}: {error}"
        if works:
            yield DoctorFinding(f"GPU cuda:{index}", "ok", text)
        else:
            yield DoctorFinding(f"GPU cuda:{index}", "WRONG", text, "use --device cpu, or a PyTorch that knows this GPU")
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else "none"
    yield DoctorFinding("CUDA", "ok", f"{built}, cuDNN {cudnn}, NVIDIA driver {driver[1] if driver else 'unknown'}")
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        advice = "install the driver's video library (in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility,video)"
        yield DoctorFinding(
            "NVDEC", "note", "the driver's library libnvcuvid.so.1 is not there: no decoding on the GPU", advice
        )
    else:
        yield DoctorFinding("NVDEC", "ok", "the driver's library is there; torchcodec-cuda uses it")


def _limits() -> Iterator[DoctorFinding]:
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = f"`ulimit -n {most if most > 0 else 65536}` before excl" if 0 <= files < MIN_FILES else ""
    yield DoctorFinding("open files", "note" if advice else "ok", f"at most {files}", advice)
    limits = {"processes": resource.RLIMIT_NPROC, "address space": resource.RLIMIT_AS, "file size": resource.RLIMIT_FSIZE}
    limited = [f"{name} {most:,}" for name, kind in limits.items() if (most := resource.getrlimit(kind)[0]) >= 0]
    yield DoctorFinding("other limits", "ok", ", ".join(limited) or "none")


def _folders() -> Iterator[DoctorFinding]:
    choice = {"cache": "set EXCL_CACHE to a folder with room", "temporary files": "set TMPDIR to a folder with room"}
    for name, folder in (("cache", cache_folder()), ("temporary files", Path(tempfile.gettempdir()))):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"excl")
        except OSError as error:
            yield DoctorFinding(name, "WRONG", f"{folder} cannot be written ({error.strerror})", choice[name])
            continue
        free_gb = shutil.disk_usage(folder).free / 1e9
        few = free_gb < MIN_DISK_GB
        yield DoctorFinding(name, "note" if few else "ok", f"{folder}, {free_gb:,.1f} GB free", choice[name] if few else "")
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    yield DoctorFinding("disk of this folder", "ok", f"{free_gb:,.1f} GB free")
    if Path("/dev/shm").is_dir():
        yield DoctorFinding("shared memory", "ok", f"{shutil.disk_usage('/dev/shm').total / 1e9:,.1f} GB in /dev/shm")


def _assets() -> Iterator[DoctorFinding]:
    for command, published in _published().items():
        there = [name for name, file in published.items() if file.cached_path.is_file()]
        missing = [name for name in published if name not in there]
        advice = f"`excl {command} fetch {missing[0]}` downloads it, as its first use does" if missing else ""
        text = f"in the cache: {', '.join(there) or 'none'}" + (f"; not there: {', '.join(missing)}" if missing else "")
        yield DoctorFinding(command, "ok" if there else "note", text, advice)


def _published() -> dict[str, dict[str, Any]]:
    from excl.models.i3d import weight_catalogue  # noqa: PLC0415
    from excl.pipeline.queries import published_glove  # noqa: PLC0415

    return {"weights": dict(weight_catalogue.PUBLISHED), "glove": dict(published_glove.PUBLISHED)}


def _network() -> Iterator[DoctorFinding]:
    """Ask each server for its first page's header, all at once: an answer of any kind shows that it can be reached."""
    hosts = sorted({urlsplit(file.url).netloc for published in _published().values() for file in published.values()})
    answers: dict[str, str] = {}
    threads = [threading.Thread(target=_ask, args=(host, answers), daemon=True) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(NETWORK_S)
    advice = "behind a proxy set HTTPS_PROXY; or bring the files by hand (`excl weights`, `excl glove`)"
    for host in hosts:
        error = answers.get(host, f"no answer in {NETWORK_S:.0f} s")
        yield DoctorFinding(f"network: {host}", "note" if error else "ok", error or "reached", advice if error else "")


def _ask(host: str, answers: dict[str, str]) -> None:
    import requests  # noqa: PLC0415

    try:
        requests.head(f"https://{host}/", timeout=NETWORK_S, allow_redirects=False)
        answers[host] = ""
    except requests.RequestException as error:
        match = re.search(
            r"Failed to resolve|Connection refused|timed out|unreachable|CERTIFICATE_VERIFY_FAILED|proxy", str(error)
        )
        answers[host] = f"not reached ({match[0] if match else type(error).__name__})"


def _environment() -> Iterator[DoctorFinding]:
    chosen = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    chosen += [
        name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "no_proxy")
    ]  # may have passwords
    yield DoctorFinding("environment", "ok", ", ".join(chosen) or "none of the variables that excl reads is set")


def _cgroup(kind: str) -> str:
    return next((text for path in CGROUPS[kind] if (text := _read(path))), "")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def show(config: DoctorConfig, findings: list[DoctorFinding]) -> str:
    """Return a line for each finding, and below one that is not ok what to do; or JSON."""
    if config.json:
        return json.dumps({"ok": not _wrong(findings), "findings": [dataclasses.asdict(finding) for finding in findings]})
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:6}{finding.name}: {finding.text}")
        lines += [f"      do: {finding.advice}"] if finding.advice else []
    wrong = _wrong(findings)
    notes = sum(finding.state == "note" for finding in findings)
    end = f"excl works here{f'; what each of the {notes} notes costs, its line says' if notes else ''}"
    return "\n".join([*lines, f"excl cannot work here: see {', '.join(wrong)}" if wrong else end])


def require_all(findings: list[DoctorFinding]) -> int:
    """Raise OSError if something that excl needs is wrong; return 0, since no video has failed."""
    if wrong := _wrong(findings):
        raise OSError(f"{', '.join(wrong)}: needed, and does not work; `excl doctor` says what to do")
    return 0


def _wrong(findings: list[DoctorFinding]) -> list[str]:
    return [finding.name for finding in findings if finding.state == "WRONG"]
