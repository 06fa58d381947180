"""Fine-tune a BERT with transformers' Trainer while it is pruned, collapse it, and use it as before.

The BERT is a small one of random weights, and its task is whether a text has the word 7: nothing is downloaded. With a
model of yours: `AutoModelForSequenceClassification.from_pretrained(...)`, and your data.
"""

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from layercollapse.integrations.transformers import LayerCollapseCallback, as_pretrained, from_pretrained

torch.manual_seed(0)
shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
config = BertConfig(**shape, vocab_size=20, max_position_embeddings=16, hidden_act="relu", num_labels=2)
model = BertForSequenceClassification(config)
texts = torch.randint(20, (768, 8))
data = [
    {"input_ids": text, "attention_mask": torch.ones_like(text), "labels": int((text == 7).any())} for text in texts
]

callback = LayerCollapseCallback(amount=0.9, rule="nepenthe", batches=8, out="small")
arguments = TrainingArguments(
    "trained",
    num_train_epochs=6,
    per_device_train_batch_size=32,
    learning_rate=2e-3,
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
)


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


trainer = Trainer(
    model,
    arguments,
    train_dataset=data[:512],
    eval_dataset=data[512:],
    compute_metrics=accuracy,
    callbacks=[callback],
)
trainer.train()
print(callback.result.explain())

small = as_pretrained(callback.result, model)  # a BertForSequenceClassification, for pipelines too
for one in (model, small):
    scores = Trainer(one, arguments, eval_dataset=data[512:], compute_metrics=accuracy).evaluate()
    print(f"{sum(p.numel() for p in one.parameters()):,} parameters, accuracy {scores['eval_accuracy']:.3f}")
small.save_pretrained("small")
assert torch.equal(from_pretrained("small")(texts[:4]).logits, small(texts[:4]).logits)
