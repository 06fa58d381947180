from layercollapse import data, models, run, train

digits = data.load("digits")  # 1,797 images of 8x8, from scikit-learn
model = models.build("resnet18", image_size=8, width=8)
result = run(
    model,
    train=lambda model: train.fit(model, digits.train, epochs=5),
    evaluate=lambda model: train.accuracy(model, digits.validation),
    data=digits.train.batches(500),
)
print(result.collapse.explain(), result.metrics["before"], result.metrics["after"], result.out, sep="\n")
