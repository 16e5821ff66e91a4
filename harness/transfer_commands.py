"""What the commands import and export do: encoders come from other projects, and go to them."""

from __future__ import annotations

from pathlib import Path

from twinbench.encoders.backbones import Stem
from twinbench.encoders.encoder import Encoder, EncoderInfo
from twinbench.encoders.foreign.exporter import export_encoder
from twinbench.encoders.foreign.importer import read_foreign
from twinbench.foundation.errors import InputError
from twinbench.harness.store import check_writable, encoder_in


def import_one(
    file: Path,
    format_name: str | None,
    method: str | None,
    out: Path,
    stem: Stem | None = None,
    network: str | None = None,
) -> None:
    """Make an encoder of another project's checkpoint and print the account of its keys."""
    if out.exists() and not out.is_dir():
        raise InputError(
            "this is a file, not a folder", where=out, next_step="give another folder", option="out"
        )
    foreign = read_foreign(file, format_name, method, stem, network)
    print(f"format:     {foreign.info.source_format}" + ("" if format_name else ", recognised from the keys"))
    print("\n".join([*foreign.accounting.lines(), *describe(foreign.info)]))
    if foreign.info.method.endswith(file.name) and method is None:
        print("            (another method: --method NAME)")
    check_writable(out)
    encoder = foreign.save(out)
    print(f"encoder:    {out} ({encoder.checksum[:12]})")


def describe(info: EncoderInfo) -> list[str]:
    """What an imported encoder is and how it is fed, line by line."""
    deviation = "" if info.deviation == "none" else f", computing with {info.deviation}"
    return [
        f"network:    {info.architecture}, width {info.width}, {info.stem} stem{deviation}",
        f"input:      {info.channel_order}, {info.input_size} px, mean {info.mean}, std {info.std}",
        f"method:     {info.method}",
        f"sha256:     {info.source_sha256} ({info.source_file})",
    ]


def export_one(folder: Path, format_name: str, out: Path) -> None:
    """Write an encoder in another project's format and print how to load it there."""
    encoder = Encoder.load(encoder_in(folder))
    exported = export_encoder(encoder, format_name, out)
    print(exported.code)
    if format_name == "detectron2":
        mean, std = ([round(255 * value, 3) for value in values] for values in (encoder.mean, encoder.std))
        print(f"config:     INPUT.FORMAT RGB, MODEL.PIXEL_MEAN {mean}, MODEL.PIXEL_STD {std}")
        print("            MODEL.RESNETS.STRIDE_IN_1X1 False")
    else:
        print(f"input:      {encoder.info.channel_order} in [0, 1], mean {encoder.mean}, std {encoder.std}")
    print(f"checked:    {exported.checked}")
    print(f"exported:   {out}")
