import torch

from twinbench.foundation.transfer import pack, to_device, unpack


def test_what_is_packed_comes_out_again_whatever_its_dtype_and_shape() -> None:
    tensors = [
        torch.tensor([True, False, True]),
        torch.arange(15, dtype=torch.int64).view(3, 5).T,
        torch.empty(0, 4),
        torch.randn(7, dtype=torch.float64),
        torch.tensor(3.5),
        torch.randn(2, 3).to(torch.bfloat16),
        torch.arange(9, dtype=torch.uint8)[::2],
    ]
    packed = pack(tensors)
    assert packed.dtype == torch.uint8
    assert packed.dim() == 1
    for back, tensor in zip(unpack(packed.clone(), tensors), tensors, strict=True):
        assert back.dtype == tensor.dtype
        assert torch.equal(back, tensor)


def test_on_the_cpu_nothing_is_copied() -> None:
    tensor = torch.randn(3)
    (same,) = to_device([tensor], torch.device("cpu"))
    assert same.data_ptr() == tensor.data_ptr()
