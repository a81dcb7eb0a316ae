"""ModelPool: one model with one set of engine settings, on one or more variants of hardware."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from fairlead_operator.api.v1alpha1.base import (
    Amount,
    ContextTokens,
    Count,
    Duration,
    KubeModel,
    LabelKey,
    Labels,
    LabelValue,
    Message,
    Money,
    Name,
    ObjectName,
    Replicas,
    Timestamp,
    Uri,
    Word,
    atomic_list,
    cel,
    map_list,
    rules,
)
from fairlead_operator.api.v1alpha1.common import Resource, Status

BATCH_FITS = cel(
    "!has(self.maxBatchedTokens) || !has(self.maxSequences) || self.maxBatchedTokens >= self.maxSequences",
    "maxBatchedTokens must be at least maxSequences",
)
Revision = Annotated[str, Field(min_length=1, max_length=128)]
Image = Annotated[str, Field(min_length=1, max_length=512)]
Sequences = Annotated[int, Field(ge=1, le=4096)]
BatchedTokens = Annotated[int, Field(ge=1, le=1_048_576)]
MemoryPercent = Annotated[int, Field(ge=10, le=99)]
ParallelSize = Annotated[int, Field(ge=1, le=16)]
QuantizationMethod = Annotated[str, Field(pattern="^[a-z0-9_-]+$", max_length=63)]
ENGINE_ARGUMENT_PATTERN = r"^--[a-z0-9][a-z0-9.-]*(=.*)?$"
EngineArgument = Annotated[str, Field(pattern=ENGINE_ARGUMENT_PATTERN, max_length=1024)]
EngineArguments = Annotated[tuple[EngineArgument, ...], Field(max_length=32, json_schema_extra=atomic_list())]
AnnotationValue = Annotated[str, Field(max_length=4096)]
VariantName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=20)]


class SecretRef(KubeModel):
    """A Secret of the pool's namespace."""

    name: ObjectName
    """Name of the Secret."""


class Cache(KubeModel):
    """Where downloaded weights and compiled graphs are kept."""

    claim_name: ObjectName
    """Name of a PersistentVolumeClaim of the pool's namespace."""


class ModelSource(KubeModel):
    """Which checkpoint a replica loads."""

    uri: Uri
    """Where the checkpoint is: hf://org/name, s3://, gs://, pvc:// or oci://."""
    revision: Revision | None = None
    """Commit, tag or branch of the checkpoint. Default: the source's head when a pod starts."""

    @property
    def loose(self) -> bool:
        """Whether pods that start at different times may load different checkpoints."""
        return self.revision is None and self.uri.startswith("hf://")


class Adapter(KubeModel):
    """A LoRA adapter of the pool's model."""

    name: Name
    """Name that routes give as adapter."""
    uri: Uri
    """Where the adapter is: hf://org/name or pvc://claim/path; a running engine loads from nowhere else."""


class Lora(KubeModel):
    """LoRA adapters that the engine serves beside the model."""

    max_rank: Literal[8, 16, 32, 64, 128, 256] = 16
    """Largest rank of an adapter (--max-lora-rank). Default: 16."""
    max_active: Annotated[int, Field(ge=1, le=64)] = 1
    """Adapters that one batch may mix (--max-loras). Default: 1."""
    adapters: Annotated[tuple[Adapter, ...], Field(min_length=1, max_length=64, json_schema_extra=map_list("name"))]
    """Adapters, loaded and unloaded without a rollout."""


class Model(ModelSource):
    """The pool's model, and what loading it needs."""

    secret_ref: SecretRef | None = None
    """Secret whose keys become the engine container's environment, such as HF_TOKEN. Default: none."""
    cache: Cache | None = None
    """Volume that holds HF_HOME and VLLM_CACHE_ROOT. Default: an emptyDir of each pod."""
    lora: Lora | None = None
    """LoRA adapters to serve. Default: none, and the engine takes none."""


class Quantization(KubeModel):
    """Number formats, in vLLM's own words."""

    weights: QuantizationMethod | None = None
    """Method of the weights (--quantization). Default: what the checkpoint says."""
    kv_cache: QuantizationMethod | None = None
    """Type of the KV cache (--kv-cache-dtype). Default: what the checkpoint says."""


class SpeculativeDecoding(KubeModel):
    """Drafting tokens ahead of the model."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "(self.method in ['draft_model', 'eagle3']) == has(self.model)",
                "model is required by draft_model and eagle3, and not allowed with ngram and mtp",
            )
        )
    )

    method: Literal["ngram", "draft_model", "eagle3", "mtp"]
    """Who drafts, in vLLM's own words."""
    tokens: Annotated[int, Field(ge=1, le=32)]
    """Number of tokens drafted at a time (num_speculative_tokens)."""
    model: Uri | None = None
    """Draft checkpoint; required by draft_model and eagle3. Default: none."""
    max_batch_size: Sequences | None = None
    """Largest batch that is drafted for; larger ones run without. Default: always drafted."""


class EngineOverrides(KubeModel):
    """Engine fields that a variant replaces; each replaces the pool's field whole."""

    model_config = ConfigDict(json_schema_extra=rules(BATCH_FITS))

    image: Image | None = None
    """Image of the engine. Default: the pool's."""
    max_sequences: Sequences | None = None
    """Requests that one replica runs at once (--max-num-seqs). Default: the pool's."""
    max_batched_tokens: BatchedTokens | None = None
    """Tokens of one engine step (--max-num-batched-tokens). Default: the pool's."""
    memory_utilization_percent: MemoryPercent | None = None
    """Share of the accelerator's memory that vLLM may use (--gpu-memory-utilization). Default: the pool's."""
    quantization: Quantization | None = None
    """Number formats of weights and KV cache. Default: the pool's."""
    speculative_decoding: SpeculativeDecoding | None = None
    """Drafting of tokens. Default: the pool's."""
    extra_args: EngineArguments | None = None
    """Further arguments of vLLM; an empty list takes the pool's away. Default: the pool's."""


class Engine(KubeModel):
    """How vLLM runs the model."""

    model_config = ConfigDict(json_schema_extra=rules(BATCH_FITS))

    image: Image | None = None
    """Image of the engine. Default: the release's engine image, frozen when the pool is first rendered."""
    max_context_tokens: ContextTokens | None = None
    """Prompt and output tokens of one request (--max-model-len). Default: the checkpoint's own."""
    max_sequences: Sequences | None = None
    """Requests that one replica runs at once (--max-num-seqs). Default: vLLM's, by hardware."""
    max_batched_tokens: BatchedTokens | None = None
    """Tokens of one engine step (--max-num-batched-tokens). Default: vLLM's, by hardware."""
    memory_utilization_percent: MemoryPercent = 92
    """Share of the accelerator's memory that vLLM may use (--gpu-memory-utilization). Default: 92."""
    prefix_caching: Literal["Enabled", "Disabled"] = "Enabled"
    """Whether prompts that begin alike share their KV cache. Default: Enabled."""
    quantization: Quantization | None = None
    """Number formats of weights and KV cache. Default: what the checkpoint says."""
    speculative_decoding: SpeculativeDecoding | None = None
    """Drafting of tokens. Default: none."""
    extra_args: EngineArguments = ()
    """Further arguments of vLLM, --name or --name=value; none that a field or Fairlead sets. Default: none."""

    def overridden_by(self, overrides: EngineOverrides | None) -> "Engine":
        """These settings with the fields that a variant sets in their place."""
        if overrides is None:
            return self
        set_here = {name: getattr(overrides, name) for name in overrides.model_fields_set}
        return self.model_copy(update={name: value for name, value in set_here.items() if value is not None})


class Accelerator(KubeModel):
    """The resource that a replica is scheduled by."""

    resource_name: LabelKey = "nvidia.com/gpu"
    """Extended resource, MIG names included; cpu counts the engine's CPU request. Default: nvidia.com/gpu."""


class Parallelism(KubeModel):
    """How one replica is spread over accelerators."""

    tensor: ParallelSize = 1
    """Accelerators that share each layer (--tensor-parallel-size). Default: 1."""
    pipeline: ParallelSize = 1
    """Groups of layers in a row (--pipeline-parallel-size). Default: 1."""

    @property
    def accelerators(self) -> int:
        """Accelerators of one replica."""
        return self.tensor * self.pipeline


class Toleration(KubeModel):
    """A taint that pods tolerate, as in core/v1."""

    key: Annotated[str, Field(max_length=316)] | None = None
    """Key of the taint. Default: every key, with operator Exists."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Relation between the taint and value. Default: Equal."""
    value: LabelValue | None = None
    """Value of the taint. Default: the empty value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Default: every effect."""
    toleration_seconds: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """How long NoExecute is tolerated. Default: forever."""


class Variant(KubeModel):
    """One kind of hardware that runs the model; interchangeable with the others to callers."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
                "minReplicas must not exceed maxReplicas",
            )
        )
    )

    name: VariantName
    """Name of the variant; its Deployment is <pool>-<variant>."""
    accelerator: Accelerator = Accelerator()
    """Resource that a replica is scheduled by. Default: nvidia.com/gpu."""
    parallelism: Parallelism = Parallelism()
    """How one replica is spread over accelerators. Default: one accelerator."""
    node_selector: Labels = Field(default_factory=dict)
    """Labels of the nodes to run on; the price list is matched on them too. Default: none."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16, json_schema_extra=atomic_list())] = ()
    """Taints that the pods tolerate. Default: none."""
    model: ModelSource | None = None
    """Another build of the same model; the pool's revision does not carry over. Default: the pool's."""
    engine: EngineOverrides | None = None
    """Engine fields that differ on this hardware. Default: the pool's."""
    min_replicas: Replicas = 0
    """Replicas held here first: reserved capacity. Default: 0."""
    max_replicas: Replicas | None = None
    """Most replicas on this hardware. Default: the pool's."""


class Objectives(KubeModel):
    """What the number of replicas aims at."""

    queue_depth: Annotated[int, Field(ge=1, le=1000)] = 5
    """Waiting requests for each ready replica that more replicas are added above. Default: 5."""
    time_to_first_token: Duration | None = None
    """Longest time until a request's first token, its waiting included. Default: no such objective."""
    time_per_output_token: Duration | None = None
    """Longest time between a request's output tokens, on average. Default: no such objective."""
    attainment_percent: Annotated[int, Field(ge=50, le=99)] = 99
    """Share of requests that meets every latency objective. Default: 99."""

    @property
    def timed(self) -> bool:
        """Whether there is an objective of latency."""
        return self.time_to_first_token is not None or self.time_per_output_token is not None


class Autoscaling(KubeModel):
    """Bounds and aims of the number of replicas."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel("self.minReplicas <= self.maxReplicas", "minReplicas must not exceed maxReplicas"),
            cel(
                "!has(self.scaleToZeroAfter) || self.minReplicas == 0",
                "scaleToZeroAfter needs minReplicas: 0",
            ),
        )
    )

    min_replicas: Replicas = 1
    """Fewest replicas over all variants; 0 lets the pool go to zero. Default: 1."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Most replicas over all variants."""
    scale_to_zero_after: Duration | None = None
    """Time without a request after which the pool goes to zero. Default: 30m when minReplicas is 0."""
    objectives: Objectives = Objectives()
    """What the number of replicas aims at. Default: a queue depth of 5."""
    max_cost_per_thousand_requests: Money | None = None
    """USD; no replica is added that makes the forecast cost of a thousand requests higher. Default: no limit."""

    @property
    def idle_ms(self) -> int | None:
        """Milliseconds without a request after which the pool goes to zero; None: never."""
        if self.min_replicas > 0:
            return None
        return (self.scale_to_zero_after or Duration("30m")).ms


class Rollout(KubeModel):
    """How a change replaces pods, one variant at a time."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "self.maxSurge > 0 || self.maxUnavailable > 0",
                "maxSurge and maxUnavailable must not both be 0",
            )
        )
    )

    max_surge: Annotated[int, Field(ge=0, le=100)] = 1
    """Replicas above the wanted number during a rollout. Default: 1."""
    max_unavailable: Annotated[int, Field(ge=0, le=100)] = 0
    """Replicas that may be missing during a rollout; 1 with maxSurge 0 when no accelerator is spare. Default: 0."""
    drain_timeout: Duration = Duration("10m")
    """Time that a pod's running requests have before it ends. Default: 10m."""
    startup_timeout: Duration = Duration("20m")
    """Time that a new pod has to become ready. Default: 20m."""


class PodMetadata(KubeModel):
    """Metadata added to the pods."""

    labels: Labels = Field(default_factory=dict)
    """Labels of the pods. Default: none."""
    annotations: Annotated[dict[str, AnnotationValue], Field(max_length=32)] = Field(default_factory=dict)
    """Annotations of the pods; changing one restarts them. Default: none."""


class PodTemplate(KubeModel):
    """What is merged into the rendered pods last."""

    metadata: PodMetadata | None = None
    """Labels and annotations of the pods. Default: none."""
    spec: Annotated[dict[str, Any] | None, Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})] = (
        None
    )
    """PodSpec to merge in; its containers are engine and router. Default: none."""


class ModelPoolSpec(KubeModel):
    """What should run."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel("has(self.replicas) != has(self.autoscaling)", "set exactly one of replicas and autoscaling")
        )
    )

    model: Model
    """Checkpoint that the replicas load."""
    engine: Engine = Engine()
    """Settings of vLLM. Default: vLLM's own."""
    variants: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=8, json_schema_extra=map_list("name"))]
    """Hardware to run on; each variant is one Deployment."""
    replicas: Replicas | None = None
    """Total of replicas over all variants; HPA, KEDA and kubectl scale write it. Default: autoscaling decides."""
    autoscaling: Autoscaling | None = None
    """Bounds and aims of the number of replicas. Default: replicas decides."""
    rollout: Rollout = Rollout()
    """How a change replaces pods. Default: one surge pod, none unavailable."""
    pod_template: PodTemplate | None = None
    """What is merged into the rendered pods last. Default: none."""

    def engine_of(self, variant: Variant) -> Engine:
        """The engine settings that hold on a variant."""
        return self.engine.overridden_by(variant.engine)

    def model_of(self, variant: Variant) -> ModelSource:
        """The checkpoint that a variant loads; a variant's own does not take over the pool's revision."""
        return variant.model or self.model


class Service(KubeModel):
    """How the pool served in the last minutes."""

    window: Duration | None = None
    """Time that the numbers cover."""
    queue_depth: Count | None = None
    """Requests that wait now."""
    time_to_first_token: Duration | None = None
    """Time to the first token, 99th percentile."""
    time_per_output_token: Duration | None = None
    """Time between tokens, 99th percentile."""
    attainment_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """Share of requests that met every latency objective."""


class Rate(KubeModel):
    """The rate card that requests are charged by."""

    version: Annotated[int, Field(ge=0, le=2**53)] | None = None
    """Version that charges name."""
    source: Word | None = None
    """Where the capacity behind the rates comes from."""
    prompt_per_million_tokens: Amount | None = None
    """USD for a million prompt tokens that are not cached."""
    cached_prompt_per_million_tokens: Amount | None = None
    """USD for a million cached prompt tokens."""
    output_per_million_tokens: Amount | None = None
    """USD for a million output tokens."""
    effective_time: Timestamp | None = None
    """Since when requests are charged by it."""


class ScalingDecision(KubeModel):
    """One change of the number of replicas, and why."""

    time: Timestamp
    """When it was decided."""
    from_replicas: Count
    """Replicas wanted before."""
    to_replicas: Count
    """Replicas wanted since."""
    reason: Word
    """What made the decision, as one word."""
    message: Message
    """Numbers that the decision was made from, and what bound it."""
    cost_per_hour_before: Amount | None = None
    """USD an hour of the replicas wanted before."""
    cost_per_hour_after: Amount | None = None
    """USD an hour of the replicas wanted since."""


class VariantStatus(KubeModel):
    """One variant as it is now."""

    name: Name
    """Name of the variant."""
    replicas: Count = 0
    """Pods that exist."""
    ready_replicas: Count = 0
    """Pods that take requests."""
    desired_replicas: Count = 0
    """Pods that are wanted."""
    accelerators_per_replica: Count | None = None
    """Accelerators that one replica takes."""
    price_per_accelerator_hour: Amount | None = None
    """USD an hour for one accelerator."""
    price_source: Annotated[str, Field(max_length=253)] | None = None
    """Entry of the price list that the price is from."""
    image: Annotated[str, Field(max_length=512)] | None = None
    """Engine image that the variant was rendered with."""
    revision: Annotated[str, Field(max_length=128)] | None = None
    """Revision of the checkpoint that the variant was rendered with."""


class AdapterStatus(KubeModel):
    """One LoRA adapter as it is now."""

    name: Name
    """Name of the adapter."""
    ready_replicas: Count = 0
    """Pods that answer requests for it."""


class ModelPoolStatus(Status):
    """What runs."""

    replicas: Count | None = None
    """Pods that exist."""
    ready_replicas: Count | None = None
    """Pods that take requests."""
    desired_replicas: Count | None = None
    """Pods that are wanted."""
    selector: Annotated[str, Field(max_length=512)] | None = None
    """Label selector of the pods, for the scale subresource."""
    cost_per_hour: Amount | None = None
    """USD an hour of the pods that exist."""
    cost_per_thousand_requests: Amount | None = None
    """USD of a thousand requests over the last hour, idle included."""
    service: Service | None = None
    """How the pool served in the last minutes."""
    rate: Rate | None = None
    """Rate card that requests are charged by."""
    scaling: Annotated[tuple[ScalingDecision, ...], Field(max_length=5, json_schema_extra=atomic_list())] = ()
    """Last changes of the number of replicas, newest first."""
    variants: Annotated[tuple[VariantStatus, ...], Field(max_length=8, json_schema_extra=map_list("name"))] = ()
    """Variants as they are now."""
    adapters: Annotated[tuple[AdapterStatus, ...], Field(max_length=64, json_schema_extra=map_list("name"))] = ()
    """LoRA adapters as they are now."""


class ModelPool(Resource):
    """A ModelPool runs one model with one set of engine settings on one or more variants of hardware."""

    spec: ModelPoolSpec
    status: ModelPoolStatus = ModelPoolStatus()
