"""ModalPrompt: a soft prompt per task; a sample gets the prompts whose prototypes its picture and text resemble."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.adapters.low_rank import seeded_generator
from components.adapters.prompts import random_words, rms, unit_words
from components.adapters.serving import Digests, served_by_tensors
from components.adapters.task_prompts import PrototypeHead, TaskPrompts
from components.core.errors import CheckpointError
from components.methods.base import Engine, Forgotten, Loss, MethodState, Selection, TaskInfo
from components.methods.common.features import ReadsInstructions, picture_features
from components.methods.common.growing import GrowingMethod
from components.methods.common.unlearning import place_of, renumbered, structure_without, without_rows
from components.methods.options.modal_prompt import ModalPromptConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone, Outputs

PROMPTS, HEAD = "modal_prompts", "modal_prompt_head"  # the modules in the model
STEP = 50.0  # prompts move this many times as far per update as the head, in units of the model's embeddings


class ModalPrompt(ReadsInstructions[ModalPromptConfig], GrowingMethod[ModalPromptConfig]):
    """ModalPrompt.

    Paper: Zeng et al., EMNLP 2025, "ModalPrompt: Towards Efficient Multimodal Continual Instruction Tuning with
        Dual-Modality Guided Prompt", arXiv 2410.05849. The released code is followed; the paper was unavailable.
    Idea: every task has a prompt, and a head turns it into a prototype that is drawn to the task's pictures and texts.
        A sample is compared with all prototypes: the K most similar prompts are put before its input (selection), the
        most similar one last, next to the text. Training puts the current prompt last and the K - 1 most similar
        earlier ones, frozen, before it (fusion).
    Objective: L_lm + a (1 - cos(picture, p_t)) + b (1 - cos(text, p_t)), over the current task's prompt and head.
        guide_j = share cos(picture, p_j) + (1 - share) cos(text, p_j);  p = mean over tokens of W2 silu(W1 prompt)
    Overrides: attach, select, served_by, loss, end_task (prototypes), forget_task; `GrowingMethod` does the rest.
    Carried between tasks: prompts and prototypes, both frozen. Under oracle routing a sample gets what its task was
        trained with (the task's prompt and the most similar of those before it), so its answers never change again.
    Differs:
        - Published runs see every row ten times; under this project's default budget of 60 updates none is seen twice,
          and prompts learn little. Give epochs for a fair figure.
        - Pictures and texts are seen by the tower's mean tokens and the sentence encoder instead of CLIP's two towers,
          which share a space. Hence a prototype has two parts, from one hidden layer and two output layers.
        - A text-only sample is guided by its text alone and adds no picture term; the released code shows it a blank.
        - The head leaves with its task: the prompt does not change any more, so neither does the prototype, and it is
          kept instead (C + Q numbers for a head of D^2 and more). The released code keeps and evaluates all heads.
        - Prompts come before the first token of the row; the released code puts them after the first one (BOS).
        - Distances weigh by a sample's answer tokens, as its language-model loss does; else the objective would depend
          on the cut into micro-batches.
        - Prompts count in units of 50 times the root mean square of the model's embeddings: at the usual rate of 2e-3 a
          prompt moves a tenth of a word per update, as in l2p, and the head 2e-3. Released: one rate for both, 2e-4 or
          2e-5, over ten epochs. The head reads prompts in units of the embeddings.
        - The released training takes one earlier prompt in one version of the file and K - 1 in another; K - 1 here.
    ZeRO: all stages. Prompts and head are read in their own forwards, inside the engine's.
    """

    rows_leave = True
    MEMORY = "prototypes."  # "image" [T, C] and "text" [T, Q] of learned tasks

    def __init__(self, config: ModalPromptConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.prompts: TaskPrompts
        self.head: PrototypeHead | None = None  # while a task is learned
        self.unit = 1.0  # root mean square of the model's embeddings
        self.distances: tuple[Tensor, Tensor] | None = None  # [B] each, inside `select`

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        model.requires_grad_(False)
        self.unit = rms(unit_words(self._words(model)))
        self.prompts = TaskPrompts(STEP * self.unit)
        model.add_module(PROMPTS, self.prompts)
        super().attach(model, state)
        if self.tasks and self.memory.keys() != {"image", "text"}:
            raise CheckpointError("the checkpoint's state has no prototypes; it is damaged, start a new run.")

    def grow(self, model: Backbone, index: int) -> None:
        """Append a prompt, embeddings of random tokens, and give the task that is not learned yet a fresh head."""
        generator = seeded_generator(self.seed, "prompt", str(index))
        self.prompts.add_task(index, random_words(self._words(model), self.config.prompt_length, generator))
        if index < len(self.tasks):
            return
        generator = seeded_generator(self.seed, "head", str(index))
        head = PrototypeHead(model.hidden_size, model.picture_width, self.encoder.dim, generator).to(model.device)
        self.head = head
        model.add_module(HEAD, head)

    def set_trainable(self, index: int) -> None:
        self.prompts.set_trainable(index)
        assert self.head is not None
        self.head.requires_grad_(True)

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        if self.current is None and not self.tasks:  # zero-shot: there is no prompt yet
            yield Selection()
            return
        names = [*self.tasks] if self.current is None else [*self.tasks, self.current.name]
        prompts = self.prompts(len(names))
        by_image, by_text, pictured = self._cosines(model, batch, prompts)
        share = self.config.image_share * pictured.float().unsqueeze(1)
        # without a picture the text alone orders the prompts, at any share
        guide = torch.where(pictured.unsqueeze(1), share * by_image + (1.0 - share) * by_text, by_text).detach()
        chosen = self._choose(guide, names, batch.oracle_task)
        # an embedding, since the gradient of plain indexing is summed in any order
        prefix = F.embedding(chosen, prompts.flatten(1)).view(len(batch), -1, prompts.shape[2])
        if self.current is not None:
            self.distances = (1.0 - by_image[:, -1]) * pictured, 1.0 - by_text[:, -1]
        try:
            with model.prefixed(prefix):
                yield Selection(slots=chosen, routed_to=[names[index] for index in chosen[:, -1].tolist()])
        finally:
            self.distances = None

    def served_by(self, model: Backbone, batch: Batch, digests: Digests) -> str | None:
        return served_by_tensors({} if model.prefix is None else {"prefix": model.prefix})

    def loss(self, model: Backbone, batch: Batch, outputs: Outputs, selection: Selection) -> Loss:
        assert self.distances is not None, "a task is trained with prompts"
        image, text = (distance[outputs.rows].mean() for distance in self.distances)  # over answer tokens
        total = outputs.loss + self.config.image_pull * image + self.config.text_pull * text
        return Loss(total=total, parts={"image_distance": image, "text_distance": text})

    @torch.no_grad()
    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        assert engine is not None, "ModalPrompt trains every task"
        assert self.head is not None
        super().end_task(engine, task, batches)
        found = self.head(self.prompts(self.begun)[-1] / self.unit)
        for name, prototype in zip(("image", "text"), found, strict=True):
            earlier = [self.memory[name]] if name in self.memory else []
            self.memory[name] = torch.cat([*earlier, prototype.cpu().unsqueeze(0)])
        delattr(engine.model, HEAD)
        self.head = None

    def forget_task(self, state: MethodState, task: str) -> Forgotten:
        place, learned = place_of(state, task)
        tensors = renumbered(state.tensors, rf"({PROMPTS}\.prompt_)(\d+)()", place)
        for name in (f"{self.MEMORY}image", f"{self.MEMORY}text"):
            tensors[name] = without_rows(tensors[name], place)
        alone = place == learned - 1 or self.config.top_k == 1
        left = "" if alone else "later prompts were trained behind this one, where samples resembled it"
        return Forgotten(state=MethodState(tensors=tensors, structure=structure_without(state, task)), traces=left)

    @property
    def num_slots(self) -> int:
        return self.begun

    def parameters(self) -> dict[str, nn.Parameter]:
        found = {f"{PROMPTS}.{name}": value for name, value in self.prompts.named_parameters()}
        if self.head is not None:
            found |= {f"{HEAD}.{name}": value for name, value in self.head.named_parameters()}
        return found

    # What the hooks are made of.

    def _words(self, model: Backbone) -> nn.Embedding:
        embedding = model.language_model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        return embedding

    def _cosines(self, model: Backbone, batch: Batch, prompts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines with every prototype by picture [B, T] and by text [B, T], and which samples have a picture [B]."""
        pictures, pictured = picture_features(model, batch)
        image, text = ([self.memory[name].to(model.device)] if self.tasks else [] for name in ("image", "text"))
        if self.current is not None:
            assert self.head is not None
            own = self.head(prompts[-1] / self.unit)
            image, text = [*image, own[0].unsqueeze(0)], [*text, own[1].unsqueeze(0)]
        queries = self.encoder.encode(batch.instructions).to(model.device)
        return _cosine(pictures.to(model.device), torch.cat(image)), _cosine(queries, torch.cat(text)), pictured

    def _choose(self, guide: Tensor, names: list[str], oracle: str | None) -> Tensor:
        """Ids [B, K] by ascending similarity guide [B, T]; a known task comes last, after earlier ones."""
        known = len(names) - 1 if self.current is not None else None
        if self.current is None and oracle in names:
            known = names.index(oracle)
        if known is None:
            return guide.topk(min(self.config.top_k, len(names)), dim=1).indices.flip(1)
        own = torch.full((len(guide), 1), known, device=guide.device)
        partners = guide[:, :known].topk(min(self.config.top_k - 1, known), dim=1).indices.flip(1)
        return torch.cat([partners, own], dim=1)


def _cosine(queries: Tensor, prototypes: Tensor) -> Tensor:
    """queries [B, Q], prototypes [T, Q] -> [B, T]."""
    return F.normalize(queries, dim=1) @ F.normalize(prototypes, dim=1).T
