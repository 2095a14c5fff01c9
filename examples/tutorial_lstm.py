"""An LSTM as tutorials show it: one element at a time, then a whole sequence, then training.

The task: of every word in a sentence say what part of speech it is. With another layer of the same
call in the import below the rest stays as it is.
"""

import torch
from torch import nn
from torch.nn import LSTM

torch.manual_seed(1)

# A layer that maps 3 features to 3, and a sequence of 5 elements.
lstm = LSTM(3, 3)
inputs = [torch.randn(1, 3) for _ in range(5)]

# One element at a time, the state carried by hand from one to the next.
hidden = (torch.randn(1, 1, 3), torch.randn(1, 1, 3))
start = hidden
for element in inputs:
    out, hidden = lstm(element.view(1, 1, -1), hidden)

# All elements at once, from the same state: the same outputs and the same state in the end.
outputs, last = lstm(torch.cat(inputs).view(len(inputs), 1, -1), start)
print("the difference between step by step and at once:", (outputs[-1] - out[0]).abs().max().item())
torch.testing.assert_close(outputs[-1:], out)
torch.testing.assert_close(last, hidden)

# A sequence that is too long for memory: in windows, the state handed on without its history.
window = 2
state = tuple(part.detach() for part in start)
for elements in torch.cat(inputs).view(len(inputs), 1, -1).split(window):
    out, state = lstm(elements, state)
    out.sum().backward()
    state = tuple(part.detach() for part in state)


# Words and their parts of speech. "saw" and "light" are two of them each: the neighbours tell.
SENTENCES = [
    ("the dog saw a light", "DET NOUN VERB DET NOUN"),
    ("a light rain fell", "DET ADJ NOUN VERB"),
    ("the carpenter lost a saw", "DET NOUN VERB DET NOUN"),
    ("everybody saw the light rain", "NOUN VERB DET ADJ NOUN"),
    ("the saw fell", "DET NOUN VERB"),
    ("dogs light a lamp", "NOUN VERB DET NOUN"),
]
sentences = [(words.split(), tags.split()) for words, tags in SENTENCES]
words = {word: i for i, word in enumerate(sorted({w for s, _ in sentences for w in s}))}
tags = {tag: i for i, tag in enumerate(sorted({t for _, s in sentences for t in s}))}


class Tagger(nn.Module):
    def __init__(self, embedding_dim, hidden_dim):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.embedding = nn.Embedding(len(words), embedding_dim)
        self.lstm = LSTM(embedding_dim, hidden_dim)
        self.head = nn.Linear(hidden_dim, len(tags))

    def init_hidden(self):
        # (layers, batch, features)
        return (torch.randn(1, 1, self.hidden_dim), torch.randn(1, 1, self.hidden_dim))

    def forward(self, sentence):
        embedded = self.embedding(sentence).view(len(sentence), 1, -1)
        out, self.hidden = self.lstm(embedded, self.init_hidden())
        return self.head(out.view(len(sentence), -1))


def numbers(sequence, index):
    return torch.tensor([index[item] for item in sequence])


model = Tagger(embedding_dim=8, hidden_dim=16)
loss_function = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=0.03)

losses = []
for epoch in range(40):
    total = 0.0
    for sentence, parts in sentences:
        optimizer.zero_grad()
        loss = loss_function(model(numbers(sentence, words)), numbers(parts, tags))
        loss.backward()
        optimizer.step()
        total += loss.item()
    losses.append(total / len(sentences))
    if epoch % 10 == 0:
        print(f"epoch {epoch:2d}  loss {losses[-1]:.3f}")

with torch.no_grad():
    right = count = 0
    for sentence, parts in sentences:
        found = model(numbers(sentence, words)).argmax(-1)
        right += int((found == numbers(parts, tags)).sum())
        count += len(parts)
accuracy = right / count
print(f"{right} of {count} words tagged right")
