"""The smallest program that bills: one customer, one step, one call.

otelbill collector &
OPENAI_API_KEY=sk-... python examples/sync_app.py
otelbill usage --by customer,step,model
"""

import openai

import otelbill

otelbill.configure()
client = openai.OpenAI()


@otelbill.metered(step="summarise")
def summarise(text: str) -> str:
    """Everything called in here is usage of this step."""
    answer = client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": f"Summarise in a sentence: {text}"}]
    )
    return answer.choices[0].message.content or ""


@otelbill.customer("acme", project="newsletter")  # also a decorator
def write_newsletter(articles: list[str]) -> list[str]:
    """All of it is paid by acme."""
    return [summarise(article) for article in articles]


if __name__ == "__main__":
    for line in write_newsletter(["The harbour was busy today.", "The bridge opens in May."]):
        print(line)
    with otelbill.customer("globex"):
        print(summarise("The new turbine passed its tests."))
        otelbill.record_usage("pages_printed", 2, unit="page")
