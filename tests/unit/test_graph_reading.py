"""Each dialect's files, and what is wrong with them, said with its place."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from penstock.core.errors import InvalidInput
from penstock.core.servable import Signature
from penstock.core.tensor import parse_spec
from penstock.graphs import draw, reading, triton, validate
from penstock.graphs.definition import ENDPOINT, MODEL, NODE, SERVICE, URL, Graph

NATIVE = """
kind: Graph
name: digits
inputs: {image: "f4[n, 64]"}
outputs: {label: "i8[n]"}
timeout_s: 2
sequence:
  - model: scale
    inputs: {x: image}
    outputs: {y: scaled}
    timeout_s: 0.5
    retries: 2
  - switch:
      - when: mean(scaled) > 0.5
        model: bright
        version: 3
        inputs: {x: scaled}
        outputs: {label: label}
      - node: vote
nodes:
  vote:
    ensemble:
      - {endpoint: a, inputs: {x: scaled}, outputs: {label: label}}
      - {url: "http://host:8080/v2/models/b", inputs: {x: scaled}, outputs: {label: label}, dependency: soft, name: b}
    combine: majority
"""

KSERVE = """
apiVersion: serving.kserve.io/v1alpha1
kind: InferenceGraph
metadata: {name: dog-breed-pipeline, annotations: {penstock/propagate-headers: "x-user, x-b3-.*"}}
spec:
  nodes:
    root:
      routerType: Sequence
      steps:
      - serviceName: cat-dog-classifier
        name: cat_dog_classifier
      - serviceName: dog-breed-classifier
        name: dog_breed_classifier
        data: $request
        condition: '[@this].#(predictions.0=="dog")'
        dependency: Hard
  resources: {requests: {cpu: 100m}}
"""

SELDON = """
apiVersion: machinelearning.seldon.io/v1
kind: SeldonDeployment
metadata: {name: seldon-model}
spec:
  name: test-deployment
  predictors:
  - name: example
    replicas: 1
    componentSpecs:
    - spec:
        containers:
        - {name: eg-router, image: "seldonio/mab_epsilon_greedy:1.18.2"}
    graph:
      name: eg-router
      type: ROUTER
      parameters: [{name: n_branches, value: "2", type: INT}, {name: epsilon, value: "0.2", type: FLOAT}]
      children:
      - {name: classifier-1, type: MODEL, implementation: SKLEARN_SERVER, modelUri: "gs://seldon-models/iris", children: []}
      - {name: classifier-2, type: MODEL, endpoint: {service_host: other, service_port: 9001, type: REST}}
"""

TRITON = """
# An ensemble, as the documentation writes them.
name: "ensemble_model"
platform: "ensemble"
max_batch_size: 1
input [ { name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] } ]
output { name: 'CLASSIFICATION' data_type: TYPE_FP32 dims: 1000 }
output [ { name: "SEGMENTATION", data_type: TYPE_FP32, dims: [ 3, 224, 224 ] } ]
ensemble_scheduling {
  step [
    {
      model_name: "classification_model"
      model_version: -1
      input_map { key: "FORMATTED_IMAGE" value: "preprocessed_image" }
      output_map { key: "CLASSIFICATION_OUTPUT" value: "CLASSIFICATION" }
    },
    {
      model_name: "image_preprocess_model"
      model_version: 2
      input_map { key: "RAW_IMAGE" value: "IMAGE" }
      output_map { key: "PREPROCESSED_OUTPUT" value: "preprocessed_image" }
    }
  ]
  step <
      model_name: "segmentation_" "model"; model_version: -1
      input_map: { key: "FORMATTED_IMAGE" value: "preprocessed_image" }
      output_map { key: "SEGMENTATION_OUTPUT" value: "SEGMENTATION" }
  >
}
"""


def test_our_own_file_says_nodes_steps_and_what_they_take() -> None:
    graph = reading.read(NATIVE, "file")
    assert (graph.name, graph.dialect, graph.timeout_s) == ("digits", "native", 2.0)
    first, second = graph.nodes["root"].steps
    assert (first.target.kind, first.target.name, first.timeout_s, first.retries) == (MODEL, "scale", 0.5, 2)
    assert second.target.kind == NODE
    bright, vote = graph.nodes[second.target.name].steps
    assert (bright.target.version, str(bright.when and bright.when.text), vote.target.name) == (
        "3",
        "mean(scaled) > 0.5",
        "vote",
    )
    assert [step.target.kind for step in graph.nodes["vote"].steps] == [ENDPOINT, URL]
    assert [step.hard for step in graph.nodes["vote"].steps] == [True, False]
    assert validate.problems(graph) == []
    assert graph.models() == ("scale", "bright")


def test_kserve_files_load_unchanged() -> None:
    graph = reading.read(KSERVE, "file")
    assert (graph.name, graph.level, graph.propagate) == ("dog-breed-pipeline", "bodies", ("x-user", "x-b3-.*"))
    first, second = graph.nodes["root"].steps
    assert first.target.kind == SERVICE and not first.hard and second.hard and not second.response
    assert graph.notes == ("spec.resources",)


def test_seldon_files_load_unchanged() -> None:
    graph = reading.read(SELDON, "file")
    router = graph.nodes["eg-router"]
    assert (graph.name, graph.root, router.bandit and router.bandit.epsilon) == ("seldon-model", "eg-router", 0.2)
    targets = [graph.nodes[step.target.name].unit for step in router.steps]
    assert [str(unit and unit.call and unit.call.target) for unit in targets] == [
        "service classifier-1",
        "http://other:9001",
    ]


def test_triton_files_load_unchanged() -> None:
    graph = reading.read_ensemble(TRITON, "ensemble_model")
    steps = {step.name: step for step in graph.nodes["ensemble"].steps}
    assert list(steps) == ["classification_model", "image_preprocess_model", "segmentation_model"]
    assert steps["image_preprocess_model"].target.version == "2"
    assert [spec.shape for spec in graph.outputs] == [(-1, 1000), (-1, 3, 224, 224)]
    assert graph.inputs[0].datatype == "BYTES"
    assert validate.problems(graph) == []


def wrong(text: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        graph = reading.read(text, "g")
        faults = validate.problems(graph, signature_of)
        raise InvalidInput("; ".join(faults) or "nothing is wrong")
    return str(caught.value)


SIGNATURES = {
    "scale": Signature((parse_spec("x", "f4[n, 64]"),), (parse_spec("y", "f4[n, 64]"),), "test", True),
    "wide": Signature((parse_spec("x", "f4[n, 65]"),), (parse_spec("label", "i8[n]"),), "test", True),
    "label": Signature((parse_spec("x", "f4[n, 64]"),), (parse_spec("label", "i8[n]"),), "test", True),
    "text": Signature((parse_spec("x", "str[n]"),), (parse_spec("label", "str[n]"),), "test", True),
}


def signature_of(model: str, version: str) -> Signature | None:
    return SIGNATURES.get(model)


HEAD = 'kind: Graph\ninputs: {x: "f4[n, 64]"}\n'


LADDER = "kind: Graph\nroot: n0\nnodes: {{{}, n40: {{sequence: [{{model: m}}]}}}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: Graph\nsequenze: []", "did you mean 'sequence'"),
        ("kind: Graph\nsequence: [{modle: a}]", "did you mean 'model'"),
        ("kind: Graph\nsequence: []", "at least one step"),
        ("kind: Graph\nsequence: [{model: a}]\nswitch: [{model: a}]", "give one of"),
        ("kind: Graph\nsequence: [{model: a, endpoint: b}]", "give one of model"),
        ("kind: Graph\nensemble: [{model: a}, {model: a}]", "two steps are called 'a'"),
        ("kind: Graph\nswitch: [{model: a}, {model: b}]", "only the last"),
        ("kind: Graph\nsequence: [{model: a, weight: 3}]", "weight has no effect"),
        ("kind: Graph\nsplitter: [{model: a, weight: 0}]", "add up to 0"),
        ("kind: Graph\nsplitter: [{model: a, weight: -1}]", "at least 0"),
        ("kind: Graph\nensemble: [{model: a}]\ncombine: medain", "one of average, majority"),
        ("kind: Graph\nrouter: [{model: a}]\npolicy: ucb", "one of epsilon-greedy, thompson"),
        ("kind: Graph\nsequence: [{node: gone}]", "leads to node 'gone', which is not there"),
        (
            "kind: Graph\nroot: a\nnodes: {a: {sequence: [{node: b}]}, b: {sequence: [{node: a}]}}",
            "a → b → a lead to each other in a circle",
        ),
        (
            "kind: Graph\nroot: a\nnodes: {a: {sequence: [{model: m}]}, b: {sequence: [{model: m}]}}",
            "nothing leads to node 'b'",
        ),
        (
            LADDER.format(
                ", ".join(f"n{n}: {{ensemble: [{{node: n{n + 1}}}, {{name: b, node: n{n + 1}}}]}}" for n in range(40))
            ),
            "may pass 3298534883326 steps in nodes 41 deep; at most 10000",
        ),
        (
            LADDER.replace("n40", "n300").format(
                ", ".join(f"n{n}: {{sequence: [{{node: n{n + 1}}}]}}" for n in range(300))
            ),
            "in nodes 301 deep",
        ),
        ("kind: Graph\nsequence: [{model: a, when: 'x >'}]", "cannot read the condition"),
        ("kind: Graph\nsequence: [{model: a, timeout_s: 0}]", "it is above 0"),
        ("kind: Graph\nsequence: [{url: ftp://x}]", "write it like"),
        ("kind: Graph\nsequence: &a [{model: m}]\nnodes: {b: {sequence: *a}}", "alias"),
        ("kind: Graph\n: :", "no YAML"),
        (HEAD + "sequence: [{model: wide}]", "has the shape [-1, 65], and 'x' [-1, 64]"),
        (HEAD + "sequence: [{model: text}]", "is BYTES, and 'x' is FP32"),
        (HEAD + "sequence: [{model: scale, inputs: {z: x}}]", "has no input 'z'; it has x"),
        (HEAD + "sequence: [{model: scale, inputs: {x: q}}]", "has no value 'q' here; there are x"),
        (HEAD + "sequence: [{model: scale, outputs: {q: a}}]", "has no output 'q'"),
        (HEAD + 'outputs: {y: "f4[n]"}\nsequence: [{model: scale}]', "declared with the shape [-1], and has [-1, 64]"),
        (HEAD + 'outputs: {y: "i8[n, 64]"}\nsequence: [{model: scale}]', "declared INT64, and is FP32"),
        (HEAD + 'outputs: {z: "f4[n]"}\nsequence: [{model: scale}]', "given by no step"),
        (
            HEAD + "switch: [{model: label, when: max(q) > 1}, {model: label, name: b}]",
            "looks at 'q', which is not there",
        ),
        (HEAD + "ensemble: [{model: label}, {model: label, name: b}]", "both give 'label'"),
        (HEAD + "splitter: [{model: label}, {model: text, inputs: {x: x}}]", "is BYTES, and 'x' is FP32"),
        (KSERVE.replace("Sequence", "Sequenz"), "one of Sequence, Switch, Ensemble, Splitter"),
        (KSERVE.replace("    root:", "    start:"), "no 'root'"),
        (KSERVE.replace("v1alpha1", "v2"), "v1alpha1 is known"),
        (KSERVE.replace("$request", "$req"), "$request or $response"),
        (KSERVE.replace("dependency: Hard", "dependency: hard"), "Soft or Hard"),
        (KSERVE.replace('[@this].#(predictions.0=="dog")', "@pretty"), "has no meaning here"),
        (KSERVE.replace("Sequence", "Splitter"), "has a weight"),
        (KSERVE.replace("Sequence", "Switch"), "has a condition"),
        (SELDON.replace('n_branches, value: "2"', 'n_branches, value: "3"'), "there are 2 children"),
        (SELDON.replace("type: ROUTER", "type: ROUTERS"), "one of MODEL, ROUTER"),
        (SELDON.replace("classifier-2", "classifier-1"), "two units have this name"),
        (SELDON.replace("seldon.io/v1", "seldon.io/v9"), "v1 is known"),
        ("kind: Other", "holds 0 graphs"),
        ("[1, 2]", "holds 0 graphs"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, message: str) -> None:
    assert message in wrong(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"ensemble_model"', '"other"', "make them equal"),
        ("TYPE_STRING", "TYPE_STRINGS", "did you mean 'TYPE_STRING'"),
        ("model_version: 2", "model_version: two", "whole number"),
        (
            'value: "preprocessed_image" }\n      output_map { key: "CLASS',
            'value: "gone" }\n      output_map { key: "CLASS',
            "which nothing gives",
        ),
        ('value: "SEGMENTATION"', 'value: "CLASSIFICATION"', "comes from"),
        ('key: "RAW_IMAGE" value: "IMAGE"', 'key: "RAW_IMAGE" value: "CLASSIFICATION"', "a circle"),
        ("ensemble_scheduling {", "ensemble_scheduling [", "line"),
        ("max_batch_size: 1", "max_batch_size: ", "line"),
    ],
)
def test_what_is_wrong_with_an_ensemble_is_said(old: str, new: str, message: str) -> None:
    assert TRITON.count(old)
    with pytest.raises(InvalidInput) as caught:
        graph = reading.read_ensemble(TRITON.replace(old, new, 1), "ensemble_model")
        raise InvalidInput("; ".join(validate.problems(graph)))
    assert message in str(caught.value)


def test_text_format_is_read_in_all_its_spellings() -> None:
    message = triton.parse('a: 1 a: 2 b { c: \'x\\\'y\' "z" } b < c: "\\n" > d: [1, 2,] e: [] # end\nf { }')
    assert message.words("a") == ["1", "2"] and message.words("d") == ["1", "2"] and message.words("e") == []
    assert [each.word("c") for each in message.messages("b")] == ["x'yz", "\n"]


def test_signatures_of_a_graph_follow_from_its_models() -> None:
    graph = reading.read("kind: Graph\nsequence: [{model: scale}, {model: label, inputs: {x: y}}]", "g")
    assert [spec.name for spec in validate.inputs_of(graph, signature_of)] == ["x"]
    assert [spec.name for spec in validate.outputs_of(graph, signature_of)] == ["y", "label"]
    soft = reading.read("kind: Graph\nsequence: [{model: scale, dependency: soft}]", "g")
    assert validate.outputs_of(soft, signature_of) == ()


def graphs() -> list[Graph]:
    return [reading.read(text, "g") for text in (NATIVE, KSERVE, SELDON)] + [
        reading.read_ensemble(TRITON, "ensemble_model")
    ]


@pytest.mark.parametrize("graph", graphs(), ids=lambda graph: graph.dialect)
def test_a_picture_is_svg_and_its_boxes_do_not_overlap(graph: Graph) -> None:
    root = ElementTree.fromstring(draw.svg(graph))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    drawn = draw.picture(graph)
    for one in drawn.boxes:
        assert one.x >= 0 and one.x + one.width <= drawn.width and one.y + one.height <= drawn.height
        for other in drawn.boxes:
            if one.number < other.number:
                apart = one.x + one.width <= other.x or other.x + other.width <= one.x
                assert apart or one.y + one.height <= other.y or other.y + other.height <= one.y
    numbers = {box.number for box in drawn.boxes}
    reached, waiting = set(), [0]
    while waiting:
        at = waiting.pop()
        reached.add(at)
        waiting += [arrow.end for arrow in drawn.arrows if arrow.start == at and arrow.end not in reached]
    assert reached == numbers
    assert draw.mermaid(graph).startswith("flowchart LR\n")


def test_names_from_a_file_cannot_break_out_of_the_picture() -> None:
    graph = reading.read('kind: Graph\nname: "</title><script>"\nsequence: [{model: "<b>&x", name: ok}]', "g")
    assert "<script>" not in draw.svg(graph) and "<b>" not in draw.svg(graph)
    ElementTree.fromstring(draw.svg(graph))


def test_the_documentations_picture_is_the_one_the_code_draws() -> None:
    root = Path(__file__).parents[2]
    graph = reading.read((root / "examples/graph/careful.yaml").read_text(), "careful")
    assert validate.problems(graph) == []
    shown = (root / "docs/graph-careful.svg").read_text()
    assert shown == draw.svg(graph), "draw it again with penstock graph show"
