"""Reads what the service says to Prometheus."""

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """Return the sum of the samples with this name that have these labels, whatever others they have."""
    return sum(number for (known, given), number in found.items() if known == name and labels.items() <= set(given))


def label_values(found: Samples) -> set[str]:
    return {text for _, labels in found for _, text in labels}
