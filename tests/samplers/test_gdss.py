"""The published GDSS schemes: method card of GDSS, sections 2.2 to 2.4 and acceptance checks 10."""

import math

import pytest
import torch

from structdiff.denoisers import BaseDenoiser, Denoiser
from structdiff.noise import ReplayNoise
from structdiff.processes import VE, VP, SubVP, System
from structdiff.samplers import S4, SAMPLERS, PredictorCorrector, Run, get_sampler
from structdiff.samplers.langevin import langevin
from structdiff.spaces import Symmetric
from structdiff.state import State
from structdiff.testbeds import GaussianMixture

torch.set_num_threads(1)
N, EPS = 9, 1e-4
NODE = torch.arange(4) < torch.tensor([4, 2, 3])[:, None]
MASKS = {
    "x": NODE[:, :, None],
    "adj": NODE[:, :, None] & NODE[:, None, :] & ~torch.eye(4, dtype=torch.bool),
}
PROCESSES = {
    "VP and VP": (VP(0.1, 1.0, t_min=EPS), VP(0.2, 0.8, t_min=EPS)),
    "VE and VE": (VE(0.1, 1.0, t_min=EPS), VE(0.2, 1.0, t_min=EPS)),
    "VP and VE": (VP(0.1, 1.0, t_min=EPS), VE(0.2, 1.0, t_min=EPS)),
}
every_pair = pytest.mark.parametrize("pair", PROCESSES.values(), ids=PROCESSES)


class Score(torch.nn.Module):
    """A coupled toy score network, blind to time as the published ones."""

    def forward(self, x, log_snr, condition=None):
        node, adj = x["x"], x["adj"]
        on_x = -node + 0.3 * torch.tanh(adj @ node)
        gram = node @ node.transpose(1, 2)
        return x.map(lambda v, new: new, {"x": on_x, "adj": -0.8 * adj + 0.2 * gram}).masked()


def draws(count, seed):
    """Draws of one component, in the order they are consumed, masked and mirrored."""
    generator = torch.Generator().manual_seed(seed)
    x = [torch.randn(3, 4, 2, generator=generator, dtype=torch.float64) for _ in range(count)]
    adj = [
        torch.randn(3, 4, 4, generator=generator, dtype=torch.float64).triu(1) for _ in range(count)
    ]
    return {
        "x": [z * MASKS["x"] for z in x],
        "adj": [(z + z.transpose(1, 2)) * MASKS["adj"] for z in adj],
    }


def start():
    return State({k: v[0] for k, v in draws(1, 0).items()}, MASKS)


class Published:
    """Sections 2.2 to 2.4 of the card, written out for plain tensors."""

    def __init__(self, processes, noise):
        self.processes = dict(zip(("x", "adj"), processes, strict=True))
        self.noise = {k: iter(v) for k, v in noise.items()}
        self.times = torch.linspace(1, EPS, N, dtype=torch.float64)

    def score(self, x):
        out = Score()(State(x, MASKS), None)
        return {k: out[k] for k in x}

    def index(self, t):
        return math.floor(float(t) * (N - 1))

    def chain(self, k, t):
        """(factor, G) of the forward link."""
        p, i = self.processes[k], self.index(t)
        if isinstance(p, VP):
            b = torch.linspace(p.beta_min / N, p.beta_max / N, N, dtype=torch.float64)[i]
            return torch.sqrt(1 - b), torch.sqrt(b)
        sigmas = torch.exp(
            torch.linspace(math.log(p.sigma_min), math.log(p.sigma_max), N, dtype=torch.float64)
        )
        below = sigmas[i - 1] if i else torch.tensor(0.0, dtype=torch.float64)
        return torch.tensor(1.0), torch.sqrt(sigmas[i] ** 2 - below**2)

    def drift_and_diffusion(self, k, t):
        p, t = self.processes[k], float(t)
        if isinstance(p, VP):
            b = p.beta_min + t * (p.beta_max - p.beta_min)
            return -b / 2, math.sqrt(b)
        ratio = p.sigma_max / p.sigma_min
        return 0.0, p.sigma_min * ratio**t * math.sqrt(2 * math.log(ratio))

    def correct(self, x, score, t, snr, scale_eps):
        new = {}
        for k in x:
            p, z = self.processes[k], next(self.noise[k])
            beta = 0.0
            if isinstance(p, VP):
                betas = torch.linspace(p.beta_min / N, p.beta_max / N, N, dtype=torch.float64)
                beta = betas[self.index(t)]
            size = z.reshape(3, -1).norm(dim=1).mean()
            slope = score[k].reshape(3, -1).norm(dim=1).mean()
            gamma = 2 * (1 - beta) * (snr * size / slope) ** 2
            new[k] = x[k] + gamma * score[k] + torch.sqrt(2 * gamma) * z * scale_eps
        return new

    def predictor_corrector(self, x, predictor, snr, scale_eps):
        for t in self.times:
            x = self.correct(x, self.score(x), t, snr, scale_eps)
            score, mean, new = self.score(x), {}, {}
            for k in x:
                if predictor == "reverse-diffusion":
                    factor, g = self.chain(k, t)
                    mean[k] = x[k] - (factor - 1) * x[k] + g**2 * score[k]
                    new[k] = mean[k] + g * next(self.noise[k])
                else:
                    f, g = self.drift_and_diffusion(k, t)
                    mean[k] = x[k] - (f * x[k] - g**2 * score[k]) / N
                    new[k] = mean[k] + g * math.sqrt(1 / N) * next(self.noise[k])
            x = new
        return mean

    def kernel(self, k, t, dt):
        """Mean factor and std of the half step from t to t + dt, dt < 0, cut off at 0."""
        p, t = self.processes[k], float(t)
        dt = -min(-dt, t)
        if isinstance(p, VP):
            log = 0.25 * dt * (2 * p.beta_min + (2 * t + dt) * (p.beta_max - p.beta_min))
            return math.exp(-log), math.sqrt(-math.expm1(2 * log))
        ratio = p.sigma_max / p.sigma_min
        high, low = p.sigma_min * ratio**t, p.sigma_min * ratio ** (t + dt)
        return 1.0, math.sqrt(high**2 - low**2)

    def s4(self, x, snr, scale_eps):
        h = 1 / N
        for t in self.times:
            score = self.score(x)
            x = self.correct(x, score, t, snr, scale_eps)
            for half in (0, 1):
                mean = {}
                begin = max(float(t) - half * h / 2, 0.0)
                for k in x:
                    factor, std = self.kernel(k, begin, -h / 2)
                    mean[k] = factor * x[k]
                    x = {**x, k: mean[k] + std * next(self.noise[k])}
                if half == 0:
                    for k in x:
                        g = self.drift_and_diffusion(k, t)[1]
                        x = {**x, k: x[k] + h * g**2 * score[k]}
        return mean


def system(pair):
    return System(dict(zip(("x", "adj"), pair, strict=True)), {"adj": Symmetric()})


@every_pair
@pytest.mark.parametrize("predictor", ["reverse-diffusion", "euler-maruyama"])
def test_predictor_corrector_is_the_published_scheme(predictor, pair):
    noise = draws(2 * N, 1)
    expected = Published(pair, noise).predictor_corrector(
        {**start()}, predictor, snr=0.2, scale_eps=0.7
    )
    sampler = PredictorCorrector(N, predictor=predictor, snr=0.2, scale_eps=0.7, compat="reference")
    y = sampler(Denoiser(Score(), system(pair), "score"), start(), source=ReplayNoise(noise))
    for k in y:
        assert float((y[k] - expected[k]).abs().max()) < 1e-6


@every_pair
def test_s4_is_the_published_scheme(pair):
    noise = draws(3 * N, 2)
    expected = Published(pair, noise).s4({**start()}, snr=0.2, scale_eps=0.7)
    sampler = S4(N, snr=0.2, scale_eps=0.7, compat="reference")
    y = sampler(Denoiser(Score(), system(pair), "score"), start(), source=ReplayNoise(noise))
    for k in y:
        assert float((y[k] - expected[k]).abs().max()) < 1e-6


@pytest.mark.parametrize("links", [10, 1000])
def test_chain_indices_of_the_published_grid_are_every_link_once(links):
    # i = floor(t (N - 1)) on linspace(1, eps, N): N - 1 down to 0.
    process = VP(0.1, 1.0)
    expected = torch.linspace(0.1 / links, 1.0 / links, links, dtype=torch.float64).flip(0).sqrt()
    times = torch.linspace(1, EPS, links, dtype=torch.float64)
    found = torch.tensor([process.chain_step(float(t), links)[1] for t in times])
    assert float((found - expected).abs().max()) < 1e-7


def test_sub_vp_has_no_published_chain_and_takes_euler_links():
    # Card 2.2: f dt and g sqrt(dt); g^2 = b (1 - exp(-2 b0 t - (b1 - b0) t^2)).
    factor, noise = SubVP(0.1, 1.0).chain_step(0.5, 100)
    b = 0.55
    assert factor == pytest.approx(1 - b / 200)
    assert noise**2 == pytest.approx(b * (1 - math.exp(-0.1 - 0.9 * 0.25)) / 100)


def test_s4_by_level_is_its_three_parts_in_one():
    """Correction, half, kick, half with three draws (module's docstring), against one update.

    One object carries the mean (x = 1, no noise), the other the deviation (x = 0, noise 1).
    """
    process, t, u, snr, eps = VP(0.1, 1.0), 0.8, 0.5, 0.2, 0.7
    middle = (t + u) / 2

    class Linear(BaseDenoiser):
        def forward(self, x, t, condition=None):
            return x * 0.3 / self.system.alpha(t)

    denoiser = Linear(System(process))
    start = State({"x": torch.tensor([[1.0], [0.0]], dtype=torch.float64)})
    draws = ReplayNoise({"x": [torch.tensor([[0.0], [1.0]], dtype=torch.float64)]})
    sampler = S4(1, grid=[t, u], snr=snr, scale_eps=eps, norms="level", denoise=False)
    got = sampler(denoiser, start, source=draws)["x"][:, 0]

    alpha = {k: float(process.alpha(k)) for k in (t, middle, u)}
    sigma = {k: float(process.sigma(k)) for k in (t, middle, u)}
    score = -(1.0 - 0.3) / sigma[t] ** 2  # (alpha x0 - x) / sigma^2 at x = 1
    gamma = 2 * (alpha[t] / alpha[u]) ** 2 * (snr * sigma[t]) ** 2
    mean, variance = 1.0 + gamma * score, 2 * gamma * eps**2
    for a, b in ((t, middle), (middle, u)):
        ratio = alpha[b] / alpha[a]
        mean, variance = mean * ratio, variance * ratio**2
        variance += alpha[b] ** 2 * ((sigma[a] / alpha[a]) ** 2 - (sigma[b] / alpha[b]) ** 2)
        if b == middle:
            mean += (t - u) * float(process.diffusion_squared(t)) * score
    assert got[0].item() == pytest.approx(mean, rel=1e-12)
    assert got[1].item() ** 2 == pytest.approx(variance, rel=1e-12)


def test_corrections_are_made_between_the_given_times_only():
    """Ten points on [0.1, 1]: 0.9, 0.8, ... 0.2 and 1.0 start a step; 0.3 to 0.6 hold four."""
    system = System(VE(0.1, 1.0, t_min=0.1))
    denoiser = GaussianMixture.gmm3().denoiser(system)
    start = system.prior(State({"x": torch.zeros(4, 2, dtype=torch.float64)}), source=0)
    sampler = get_sampler("pc", 10, snr=0.1, between=(0.25, 0.65), corrections=2)
    sampler(denoiser, start, source=0)
    assert sampler.nfe == 10 + 2 * 4


def test_predictor_corrector_with_zero_snr_is_its_predictor():
    denoiser = Denoiser(Score(), system(PROCESSES["VP and VE"]), "score")
    a = PredictorCorrector(N, snr=0.0)(denoiser, start(), source=1)
    b = get_sampler("reverse-diffusion", N)(denoiser, start(), source=1)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("sampler", "evaluations"),
    [
        (PredictorCorrector(N, snr=0.2, compat="reference"), 2 * N),
        (PredictorCorrector(N, snr=0.0, compat="reference"), N),
        (S4(N, snr=0.2, compat="reference"), N),
    ],
    ids=["corrector", "no corrector", "s4"],
)
def test_published_schemes_make_the_published_number_of_evaluations(sampler, evaluations):
    sampler(Denoiser(Score(), system(PROCESSES["VE and VE"]), "score"), start(), source=0)
    assert sampler.nfe == evaluations


class Zero(torch.nn.Module):
    def forward(self, x, log_snr, condition=None):
        return x * 0.0


@pytest.mark.parametrize("compat", [None, "reference"])
@pytest.mark.parametrize("name", ["pc", "s4"])
def test_a_zero_score_and_an_empty_graph_divide_nothing_by_zero(name, compat):
    masks = {k: m & (torch.arange(3) != 1).reshape(3, 1, 1) for k, m in MASKS.items()}
    x = State(dict(start()), masks).masked()
    denoiser = Denoiser(Zero(), system(PROCESSES["VE and VE"]), "score")
    y = get_sampler(name, N, snr=0.2, compat=compat)(denoiser, x, source=0)
    assert all(bool(v.isfinite().all()) and bool((v[1] == 0).all()) for v in y.values())


def test_s4_with_a_zero_score_adds_the_variance_of_the_process():
    # Check 6 of the card: sum of sigma(t_i)^2 - sigma(t_i - h)^2, about sigma_1^2 - sigma_0^2.
    process = VE(0.1, 1.0, t_min=EPS)
    x = torch.zeros(40000, 1, dtype=torch.float64)
    sampler = S4(200, snr=0.0, compat="reference", denoise=False)
    y = sampler(Denoiser(Zero(), System(process), "score"), x, source=0)["x"]
    # standard error of a variance over 40000: 0.7 %
    assert float(y.var()) == pytest.approx(1.0 - 0.01, rel=0.03)


@pytest.mark.parametrize("process", [VP(0.1, 1.0), VE(0.1, 1.0), SubVP(0.1, 1.0)], ids=repr)
@pytest.mark.parametrize("name", [k for k, v in SAMPLERS.items() if v.nfe_per_step and v.order])
def test_many_steps_reproduce_the_variance_of_a_gaussian(name, process):
    # Check 5 of the card with 300 steps instead of 1000, in 16 dimensions; 600 objects: the
    # standard error is 1.4 %.
    c2, system = 0.6**2, System(process)
    denoiser = GaussianMixture([1.0], torch.zeros(1, 16), c2 * torch.eye(16)[None]).denoiser(system)

    def marginal(t):
        return float(process.alpha(t)) ** 2 * c2 + float(process.sigma(t)) ** 2

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 16, generator=generator, dtype=torch.float64) * math.sqrt(marginal(1.0))
    y = get_sampler(name, 300, denoise=False)(denoiser, x, source=1)["x"]
    assert float(y.var()) == pytest.approx(marginal(system.t_min), rel=0.03 + 2 * 0.014)


def widened(norms, snr, dimension=16, steps=400):
    """Variance of a standard Gaussian after many Langevin steps with its exact score, minus 1."""
    system = System(VP())
    run = Run(GaussianMixture.gmm3().denoiser(system), None, 0)
    x = State(
        {"x": torch.randn(800, dimension, generator=torch.Generator().manual_seed(0)).double()}
    )
    total = []
    for step in range(steps):
        x = langevin(run, x, -x, snr=snr, shrink={"x": 1.0}, level={"x": 1.0}, norms=norms)
        if step >= steps // 2:
            total.append(x["x"].var())
    return float(torch.stack(total).mean()) - 1


# Check 8 of the samplers card: the corrector leaves a marginal invariant to the order of its step
# gamma = 2 snr^2; a linear step has the variance 1 / (1 - gamma / 2). Standard error 0.5 %.
@pytest.mark.parametrize("norms", ["level", "batch"])
@pytest.mark.parametrize("snr", [0.1, 0.2])
def test_the_corrector_leaves_a_gaussian_invariant_to_the_order_of_its_step(norms, snr):
    assert widened(norms, snr) == pytest.approx(1 / (1 - snr**2) - 1, abs=0.015)


def test_object_norms_widen_a_gaussian_by_two_over_its_dimension():
    # Stationary density p |s|^2: E|x|^4 / (D E|x|^2) = 1 + 2/D = 1.125, times the step's 1.01.
    assert widened("object", 0.1) == pytest.approx(1.125 * 1.01 - 1, abs=0.02)
