import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from twinbench.encoders.backbones import build_backbone
from twinbench.encoders.small_maps import SmallMapConv2d, use_small_map_convolutions

# channels in and out, sides of the map, kernel, stride, padding
SHAPES = [
    (5, 7, (2, 2), 3, 1, 1),
    (5, 7, (4, 4), 3, 1, 1),
    (5, 7, (4, 4), 3, 2, 1),
    (5, 7, (8, 8), 3, 2, 1),
    (5, 7, (4, 4), 1, 2, 0),
    (5, 7, (1, 1), 3, 1, 1),
    (5, 7, (5, 5), 3, 2, 0),
    (5, 7, (2, 2), 3, 2, 1),
    (5, 7, (3, 3), 3, 1, 0),
    (5, 7, (4, 4), 3, 2, 0),
    (5, 7, (1, 2), 3, 2, 1),
    (5, 7, (4, 4), 4, 4, 0),
    (5, 7, (2, 2), 2, 2, 1),
    (5, 7, (2, 4), 3, 1, 1),
    (5, 7, (4, 2), 3, 1, 1),
    (5, 7, (1, 3), 3, 2, 1),
    (5, 7, (4, 4), 5, 1, 2),
    (5, 7, (2, 2), 1, 1, 0),
    (5, 7, (9, 9), 3, 1, 1),
]


def convolution(channels: int, filters: int, kernel: int, stride: int, padding: int) -> SmallMapConv2d:
    module = SmallMapConv2d(channels, filters, kernel, stride, padding, bias=False)
    return module.to(memory_format=torch.channels_last)


def gradients(output: Tensor, weight: Tensor, x: Tensor, of_output: Tensor) -> tuple[Tensor, Tensor]:
    of_weight, of_input = torch.autograd.grad(output, [weight, x], of_output)
    return of_weight, of_input


@pytest.mark.parametrize(("channels", "filters", "sides", "kernel", "stride", "padding"), SHAPES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_and_gradients_are_those_of_torch_in_float64(
    channels: int,
    filters: int,
    sides: tuple[int, int],
    kernel: int,
    stride: int,
    padding: int,
    layout: torch.memory_format,
) -> None:
    module = convolution(channels, filters, kernel, stride, padding).double()
    x = (
        torch.randn(3, channels, *sides, dtype=torch.float64)
        .contiguous(memory_format=layout)
        .requires_grad_()
    )
    expected = conv2d(x, module.weight, stride=stride, padding=padding)
    output = module(x)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    of_output = torch.randn_like(expected)
    for ours, theirs in zip(
        gradients(output, module.weight, x, of_output),
        gradients(expected, module.weight, x, of_output),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", [2, 4])
def test_under_autocast_it_rounds_as_torch_does(side: int) -> None:
    module = convolution(16, 24, 3, 1, 1)
    x = torch.randn(8, 16, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
    exact = conv2d(x.double(), module.weight.double(), padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x)
        theirs = conv2d(x, module.weight, padding=1)
    assert output.dtype == theirs.dtype == torch.bfloat16
    of_output = torch.randn_like(output)
    pairs = zip(
        (output, *gradients(output, module.weight, x, of_output)),
        (theirs, *gradients(theirs, module.weight, x, of_output)),
        (exact, *gradients(exact, module.weight, x, of_output.double())),
        strict=True,
    )
    for ours, torchs, right in pairs:
        assert ours.dtype == torchs.dtype
        error, of_torch = ((value.double() - right).abs().mean() for value in (ours, torchs))
        assert 0 < error < 1.5 * of_torch


def test_without_a_gradient_of_the_input_the_weights_still_have_theirs() -> None:
    module = convolution(3, 4, 3, 1, 1).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    (ours,) = torch.autograd.grad(module(x).square().sum(), [module.weight])
    (theirs,) = torch.autograd.grad(conv2d(x, module.weight, padding=1).square().sum(), [module.weight])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_only_ordinary_convolutions_are_replaced_and_keep_their_weights() -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(4, 8, 3, 2, 1, bias=False),
            nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)),
            nn.Conv2d(8, 8, 3, padding=1, bias=True),
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False),
            nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False),
            nn.Conv2d(8, 8, (3, 1), padding=(1, 0), bias=False),
            nn.Conv2d(8, 8, 3, padding="same", bias=False),
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", bias=False),
        )

    before, after = network(), network()
    kept, drawn = dict(after.named_parameters()), torch.get_rng_state()
    use_small_map_convolutions(after)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [name for name, module in after.named_modules() if isinstance(module, SmallMapConv2d)] == [
        "0",
        "1.0",
    ]
    assert all(parameter is kept[name] for name, parameter in after.named_parameters())
    assert list(after.state_dict()) == list(before.state_dict())
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(after(x), before(x))


def test_a_backbone_computes_what_it_did_with_the_convolutions_of_torch() -> None:
    torch.manual_seed(0)
    network = build_backbone("resnet10", 8, "stride2").double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    ours = network(x)
    ours.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    replaced = [module for module in network.modules() if isinstance(module, SmallMapConv2d)]
    assert replaced
    for module in replaced:
        module.forward = nn.Conv2d.forward.__get__(module)
    theirs = network(x)
    theirs.square().sum().backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert len(gradients) == len(list(network.parameters()))
    for gradient, parameter in zip(gradients, network.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "side", "stride"), [(8, 48, 2), (4, 48, 2), (8, 97, 3), (1, 64, 2)])
def test_strided_convolutions_of_few_channels_have_the_gradients_of_float64(
    channels: int, side: int, stride: int, precision: torch.dtype
) -> None:
    """Some CPUs end the process here if the convolution is left to oneDNN."""
    module = convolution(channels, 16, 1, stride, 0)
    x = torch.randn(4, channels, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        output = module(x)
    of_output = torch.randn(output.shape).to(output.dtype)
    found = gradients(output, module.weight, x, of_output)
    exact_weight, exact_x = (each.detach().double().requires_grad_() for each in (module.weight, x))
    exact = conv2d(exact_x, exact_weight, stride=stride)
    expected = gradients(exact, exact_weight, exact_x, of_output.double())
    tolerance = 1e-5 if precision == torch.float32 else 2e-2
    for ours, theirs in zip((output, *found), (exact.detach(), *expected), strict=True):
        torch.testing.assert_close(
            ours.double(), theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max())
        )
