import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from twinbench.downstream.linear import (
    PENALTIES,
    CachedLinear,
    fit_logistic,
    predict,
    select_penalty,
    standardise,
)


def blobs(n, seed, d=10, classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99), dtype=dtype)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return centres[labels] + 1.5 * torch.randn(n, d, generator=generator, dtype=dtype), labels


@pytest.mark.numerics
@pytest.mark.parametrize("penalty", [0.3, 1e-2, 1e-3])
def test_fit_equals_scikit_learn(penalty, seed_offset, margin):
    features, labels = blobs(400, seed_offset)
    parameters = fit_logistic(features, labels, 4, penalty)
    reference = LogisticRegression(C=1 / (penalty * 400), tol=1e-8, max_iter=2000)
    reference.fit(features.numpy(), labels.numpy())
    margin.at_most("difference of weights", np.abs(parameters[:-1].T.numpy() - reference.coef_).max(), 5e-3)
    ours = predict(parameters, features).softmax(dim=1).numpy()
    expected = reference.predict_proba(features.numpy())
    margin.at_most("difference of probabilities", np.abs(ours - expected).max(), 2e-3)


@pytest.mark.numerics
def test_the_starting_point_does_not_change_the_result(seed_offset, margin):
    features, labels = blobs(300, seed_offset)
    cold = fit_logistic(features, labels, 4, 0.1)
    warm = fit_logistic(features, labels, 4, 0.1, start=fit_logistic(features, labels, 4, 1.0))
    cold, warm = (predict(parameters, features).softmax(dim=1) for parameters in (cold, warm))
    margin.at_most("difference of probabilities", (warm - cold).abs().max().item(), 2e-3)


def test_standardising_uses_the_reference_and_zeroes_constant_dimensions():
    train, _ = blobs(100, 0)
    test, _ = blobs(20, 1)
    train[:, 3], test[:, 3] = 7.0, 9.0
    scaled_train, scaled_test = standardise(train, train, test)
    reference = StandardScaler().fit(train.numpy())
    live = [i for i in range(10) if i != 3]
    np.testing.assert_allclose(scaled_test[:, live].numpy(), reference.transform(test.numpy())[:, live])
    assert not scaled_train[:, 3].any()
    assert not scaled_test[:, 3].any()


@pytest.mark.numerics
def test_the_penalty_is_the_one_that_is_best_on_val(seed_offset, margin):
    train, val = blobs(60, seed_offset), blobs(500, seed_offset + 1)
    penalty, parameters = select_penalty(train, val, 4, lambda fraction: None)
    correct = {}
    for candidate in PENALTIES:
        fitted = fit_logistic(*train, 4, candidate)
        correct[candidate] = (predict(fitted, val[0]).argmax(dim=1) == val[1]).sum().item()
    margin.at_most("behind the best, of 500", max(correct.values()) - correct[penalty], 1)
    refitted = fit_logistic(*train, 4, penalty)
    margin.at_most("difference of weights", (parameters - refitted)[:-1].abs().max().item(), 2e-2)


@pytest.mark.numerics
def test_protocol_ignores_the_test_labels_when_it_selects(encoder, context, image_set, monkeypatch, margin):
    selected = []

    def spy(*arguments):
        selected.append(select_penalty(*arguments))
        return selected[-1]

    monkeypatch.setattr("twinbench.downstream.linear.select_penalty", spy)
    (top1,) = CachedLinear().evaluate(encoder, context)
    assert top1.n == 90
    margin.at_least("top-1", top1.value, 60, broken=36)
    image_set.splits["test"].labels.copy_(image_set.splits["test"].labels.flip(0))
    context.features = type(context.features)(None)
    CachedLinear().evaluate(encoder, context)
    assert selected[0][0] == selected[1][0]
    assert torch.equal(selected[0][1], selected[1][1])


def test_constant_features_of_a_collapsed_encoder_give_chance(encoder, context):
    for parameter in encoder.backbone.parameters():
        parameter.zero_()
    (top1,) = CachedLinear().evaluate(encoder, context)
    assert top1.value == pytest.approx(100 / 3)
