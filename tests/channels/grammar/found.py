"""Cases that failed once, made small: [network, plan] as JSON."""

FOUND = (
    # tracing a rewritten graph once more counted a batch in its norms
    '[{"inputs": [["vector", [7]]], "steps": [["batch norm", [0], {"affine": true, "zero": false}], '
    '["linear", [0], {"out": 12, "bias": true}]], "raw": []}, {"seed": 78, "macs": 0.7, "form": "graph"}]',
    # PyTorch's counter does not see into its fused attention
    '[{"inputs": [["map", [3, 8, 8]]], "steps": [["cat", [0, 0], {}], ["to tokens", [1], {}], '
    '["multihead attention", [2], {"heads": 2}]], "raw": []}, {"seed": 41, "ratio": 0.3}]',
    # the dims of the only head left went, which no plan from the dense network can say
    '[{"inputs": [["tokens", [6, 5]]], "steps": [["attention", [0], {"heads": 2, "width": 4, "how": "plain", '
    '"by": "attribute", "one": false}]], "raw": []}, {"seed": 2, "macs": 0.7, "form": "graph", "attention": "heads"}]',
    # the only group left of a grouped convolution lost channels, which no plan from the dense network can say
    '[{"inputs": [["map", [3, 8, 8]]], "steps": [["transposed conv", [0], {"out": 8, "groups": 1}], '
    '["conv", [1], {"out": 4, "kernel": 3, "stride": 1, "groups": 2, "bias": true}]], "raw": []}, '
    '{"seed": 36, "macs": 0.5, "form": "graph", "groups": "whole"}]',
    # a norm without channels did not count the batches that it saw
    '[{"inputs": [["vector", [7]]], "steps": [["linear", [0], {"out": 12, "bias": true}], '
    '["batch norm", [1], {"affine": true, "zero": true}], ["cat", [2, 0], {}]], "raw": []}, '
    '{"seed": 12, "macs": 0.7, "remove_branches": true}]',
    # all pixels are equal but for rounding, and a maximum gives one of them the gradient: not a mistake
    '[{"inputs": [["map", [4, 16]]], "steps": [["conv", [0], {"out": 9, "kernel": 3, "stride": 1, "groups": 1, '
    '"bias": false}], ["batch norm", [1], {"affine": true, "zero": false}], ["one more", [1], {}], '
    '["batch norm", [1], {"affine": true, "zero": true}], ["conv", [4], {"out": 9, "kernel": 1, "stride": 1, '
    '"groups": 1, "bias": false}], ["pool", [5], {"how": "AdaptiveMax"}]], "raw": []}, {"seed": 10, "macs": 0.7}]',
)
