"""A PyTorch loop of your own.

python experiments/examples/loop.py
"""

import torch
from common import options, prepare, tokens

import cltk
from cltk.data import Collator, pad_id

given = options(__doc__)
model, tokenizer, rows = prepare(given)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
methods = [cltk.Replay(given.old, 0.1), cltk.EWC(1.0, {"memory": given.old, "samples": 16}), cltk.KL(0.1)]
session = cltk.session(model, optimizer, methods, data=tokens(rows, tokenizer), tokenizer=tokenizer, batch_size=8)
loader = torch.utils.data.DataLoader(session.data, batch_size=8, shuffle=True, collate_fn=Collator(pad_id(tokenizer)))
model.train()
with session as s:
    for step, batch in zip(range(given.steps), loader, strict=False):
        out = model(**batch)
        loss = out.loss + s.loss(batch, out.logits)
        loss.backward()
        s.before_step()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        s.after_step()
        optimizer.zero_grad()
        print(step + 1, round(loss.item(), 3), s.metrics)
