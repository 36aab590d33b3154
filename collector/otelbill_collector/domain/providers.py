"""Provider names as telemetry spells them. Owns the table from spelling to one id; does not own prices.

Ids are those of the price data (`openai`, `azure`, `aws`, `google`, ...). An emitter that names a framework instead of
a provider (`langchain`, `strands-agents`, `gcp.vertex.agent`) names no provider here, so that the model decides.
"""

from __future__ import annotations

# Spellings met in the GenAI semantic conventions (old and new), OpenInference, OpenLLMetry, LiteLLM, LangChain, Vercel.
_SPELLINGS: dict[str, tuple[str, ...]] = {
    "openai": ("openai", "open_ai", "chatopenai", "openai_compatible", "text-completion-openai"),
    "azure": (
        "azure",
        "azure.ai.openai",
        "azure.ai.inference",
        "az.ai.openai",
        "az.ai.inference",
        "azure_openai",
        "azure-openai",
        "azureopenai",
        "azure_ai",
    ),
    "aws": (
        "aws",
        "aws.bedrock",
        "aws_bedrock",
        "bedrock",
        "bedrock_converse",
        "amazon_bedrock",
        "amazon-bedrock",
        "amazon.bedrock",
        "chatbedrock",
    ),
    "google": (
        "google",
        "gcp",
        "gcp.gemini",
        "gcp.gen_ai",
        "gcp.genai",
        "gcp.vertex_ai",
        "vertex_ai",
        "vertexai",
        "vertex",
        "gemini",
        "google_genai",
        "google-genai",
        "google.generative-ai",
        "google.vertex",
        "google_vertexai",
        "google-gla",
        "google-vertex",
        "google_vertex",
    ),
    "anthropic": ("anthropic", "chatanthropic"),
    "mistral": ("mistral", "mistral_ai", "mistralai", "mistral-ai"),
    "x-ai": ("x-ai", "x_ai", "xai"),
    "deepseek": ("deepseek", "deep_seek"),
    "groq": ("groq",),
    "cohere": ("cohere", "cohere_chat"),
    "perplexity": ("perplexity", "perplexity_ai"),
    "together": ("together", "together_ai", "together-ai", "togetherai"),
    "fireworks": ("fireworks", "fireworks_ai", "fireworks-ai"),
    "openrouter": ("openrouter", "open_router"),
    "moonshotai": ("moonshotai", "moonshot", "moonshot_ai"),
    "cerebras": ("cerebras",),
    "cloudflare": ("cloudflare", "workers-ai"),
    "databricks": ("databricks",),
    "voyageai": ("voyageai", "voyage", "voyage_ai"),
    "minimax": ("minimax",),
    "zhipuai": ("zhipuai", "zhipu", "zhipu_ai"),
    "zai": ("zai", "z.ai", "z_ai", "z-ai"),
    "github-copilot": ("github-copilot", "github_copilot"),
    "elevenlabs": ("elevenlabs", "eleven_labs"),
    "novita": ("novita", "novita_ai"),
}
_IDS = {spelling: provider_id for provider_id, spellings in _SPELLINGS.items() for spelling in spellings}

# Names of agents and frameworks that stand where a provider's name belongs.
_NOT_PROVIDERS = frozenset({"gcp.vertex.agent"})


def find_provider_id(spelling: str | None) -> str | None:
    """Id of the provider that telemetry calls `spelling`, or None. "openai.chat" and "anthropic.messages" are known by
    their first part, which is how the Vercel AI SDK names an endpoint of a provider.
    """
    if not spelling:
        return None
    name = spelling.strip().lower()
    if name in _NOT_PROVIDERS:
        return None
    known = _IDS.get(name) or _IDS.get(name.replace(" ", "_"))
    if known or "." not in name:
        return known
    return _IDS.get(name.split(".", 1)[0])
