"""Facts of gaia.hardware: every row is consistent, every documented spelling is read."""

import math
import subprocess
import sys

import pytest

from gaia import hardware
from gaia.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "name", "chips"),
    [
        ("v6e-8", "v6e-8", 8),
        ("V6E-8", "v6e-8", 8),
        ("v6e-2x4", "v6e-8", 8),
        ("v6e-4x2", "v6e-8", 8),
        ("v5litepod-16", "v5e-16", 16),
        ("v5p-128", "v5p-128", 64),
        ("v5p-8", "v5p-8", 4),
        ("v5p-2x2", "v5p-8", 4),
        ("v5p-4x4x4", "v5p-128", 64),
        ("v5p-4x4x16", "v5p-512", 256),
        ("tpu7x-8", "tpu7x-8", 4),
        ("8xH100", "8xH100", 8),
        ("8x h100", "8xH100", 8),
        ("1xH200", "1xH200", 1),
        ("h200", "1xH200", 1),
        ("gpu_8x_h100_sxm5", "8xH100", 8),
        ("a3-ultragpu-8g", "8xH200", 8),
        ("ct6e-standard-8t", "v6e-8", 8),
    ],
)
def test_names_are_read(text, name, chips):
    found = hardware.sku(text)
    assert (found.name, found.chips) == (name, chips)


def test_a_flat_v5p_that_does_not_exist_names_the_nearest_with_chip_counts():
    with pytest.raises(ConfigError) as error:
        hardware.sku("v5p-4x2")
    assert "v5p-16 (2x2x2, 8 chips" in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "v9z-3", "v6e-9", "3xH100", "v6e", "; rm -rf /", "v6e-0", "v6e-0x4"]
)
def test_unknown_names_say_what_is_known(text):
    with pytest.raises(ConfigError, match=r"is not known; nearest: \S+ \("):
        hardware.sku(text)


def test_every_slice_adds_up():
    for item in hardware.skus().values():
        if item.topology:
            assert math.prod(map(int, item.topology.split("x"))) == item.chips, item.name
            number = int(item.name.rsplit("-", 1)[1])
            per = item.chip.cores_per_chip if item.chip.suffix_counts == "cores" else 1
            assert number == item.chips * per, item.name
        assert item.gce_machine_type or item.lambda_type or item.name == "1xH200"
        assert hardware.sku(item.name) is item


def test_facts_are_sane_and_sourced():
    for chip in hardware.chips().values():
        assert 1e13 < chip.bf16_flops < 1e16, chip.key
        assert 15e9 < chip.hbm_bytes < 400e9, chip.key
        assert 2e11 < chip.hbm_bandwidth < 1e13, chip.key
        assert chip.source and chip.device_kinds
        for price in chip.prices:
            assert 0.3 < price.on_demand < 20 and price.source.startswith("list price")
            assert price.spot is None or price.spot < price.on_demand
    assert len(hardware.dated()) == 10


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("TPU v6 lite", "v6e"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v4", "v4"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "rtx4070ti-super"),
        ("NVIDIA GeForce RTX 5090", "rtx5090"),
        ("NVIDIA GeForce RTX 5090 Laptop GPU", None),
        ("cpu", None),
        ("NVIDIA L40S", None),
        ("TPU v4 lite", None),
    ],
)
def test_device_kinds(kind, key):
    chip = hardware.chip_of_device_kind(kind)
    assert (chip.key if chip else None) == key


def test_cards_of_ones_own_are_read_and_never_rented():
    for name in ("rtx3090", "RTX4070Ti-Super", "rtx 4070 ti super", "2xrtx5070-ti", "8 x rtx_5090"):
        card = hardware.card(name)
        assert card is not None and card.chip.owned and card.price_per_hour() is None
        assert hardware.card(card.name) == card and card.name not in hardware.skus()
    assert hardware.card("h100") is None and hardware.card("a6000") is None
    with pytest.raises(ConfigError, match="is not known"):
        hardware.sku("rtx4090")
    with pytest.raises(ConfigError, match="9 cards"):
        hardware.card("9xrtx4090")


def test_prices():
    assert hardware.sku("v6e-8").price_per_hour() == pytest.approx(8 * 2.70)
    assert hardware.sku("v6e-8").price_per_hour(spot=True, region="europe-west4") == pytest.approx(
        8 * 2.08
    )
    assert hardware.sku("8xH100").price_per_hour() == pytest.approx(31.92)
    assert hardware.sku("1xH200").price_per_hour() == pytest.approx(3.50)
    assert hardware.sku("tpu7x-8").price_per_hour() is None
    assert hardware.sku("8xH100").price_per_hour(spot=True, provider="lambda") is None


def test_jax_counts_two_devices_on_a_tpu7x_chip():
    assert hardware.sku("tpu7x-8").devices == 8
    assert hardware.sku("v5p-8").devices == 4


def test_import_needs_only_the_standard_library():
    code = (
        "import sys, gaia.hardware; gaia.hardware.sku('v6e-8');"
        "print([m for m in sys.modules if m.split('.')[0] in ('jax', 'numpy', 'yaml', 'flax')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
