"""The HTTP face: handed an encoder and a store, it answers queries and shows a page. It imports no encoder.

A request goes through these lines from top to bottom.

    serving      run.py listens; app.py puts everything together
    at the gate  gate.py looks at names, tokens, sizes and times, by limits.py; what is refused, here or later, is a
                 problem.py
    reading      depends.py says what an operation asks for, uploads.py reads images, body.py JSON
    answering    query.py, search.py, embed.py, knn.py, bank.py, stored.py and health.py, in the JSON of answers.py;
                 page.py puts the page together from static/
    shared       desk.py: seeing.py opens an image, batcher.py has it encoded with others, engine.py is asked where
                 there is one, map.py lays the bank out flat, metrics.py counts
"""
