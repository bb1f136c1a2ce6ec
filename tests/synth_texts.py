"""Planted texts for the filters of synthetic records: what must pass, and what must not."""

ENGLISH = """The siege began in September and lasted for almost nine hundred days.
Who commanded the Army Group that cut the road to the city?
Zhukov took over the defence.
It was Rommel.
Yes.
No, it was not.
True.
False. It is Paulus, not Rommel.
a small house
He left.
Because the railways were cut.
In or at Lake Ladoga.
What happened next?
State one fact about Midway.
hey, so what goes here again?
The Japanese fleet lost 4 carriers and about 250 aircraft.
An order of the admiral.
Fill in the place: the fleet lay off ____.
They came back to England in June.
The town, the river and the bridge.
Trucks crossed the ice.
B) the second of June
Nothing is said about it.
About 6,000 tanks fought in the whole battle.
The naïve café owner kept his résumé on the façade.
"Fellow citizens, I am here by the partiality of my countrymen."
The Wehrmacht and the Luftwaffe attacked at dawn.
The spores are 5 to 6.5 μm long, and α particles pass.
They walked 3 ½ miles at −5 °C.
Write the sentence out in full.""".splitlines()
NUMBERS = [
    "1944",
    "1,200",
    "3.5%",
    "12 June 1944",
    "June 6, 1944",
    "$3.2 billion",
    "42 km",
    "1941-1945",
    "125 grams",
    "0",
]
CODE = """def f(x): return x + 1
for (int i = 0; i < n; i++) { sum += a[i]; }
import numpy as np
SELECT * FROM users WHERE id = 3;
print('hello')
x = [i**2 for i in range(10)]
#include <stdio.h>
git commit -m "fix the loader"
const x = await fetch(url);
if __name__ == "__main__": main()""".splitlines()
SHAKESPEARE = """Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date;
Wherefore art thou Romeo?
To be, or not to be, that is the question:
O Romeo, Romeo!
Hath not a Jew eyes?
'Tis nobler in the mind to suffer
Good morrow, cousin.
What light through yonder window breaks?
By the pricking of my thumbs,
Something wicked this way comes.
Friends, Romans, countrymen, lend me your ears;
Now is the winter of our discontent
A horse! a horse! my kingdom for a horse!""".splitlines()
NAMES = """Erwin Rommel
Gerd von Rundstedt
Friedrich Paulus
Wehrmacht
Luftwaffe
Afrika Korps
Charles de Gaulle
Messerschmitt
Georgy Zhukov
Isoroku Yamamoto
Heinz Guderian commanded the panzers
José Martí
Łódź
the Wehrmacht
Rommel or Paulus
A) Rommel
Der Spiegel
Los Angeles
Karl Dönitz
Vo Nguyen Giap
Bukit Timah
Le Havre
Erich von dem Bach
Wade McClusky led the dive bombers.
Prokhorovka
Antoine de Saint-Exupéry""".splitlines()
GOOD = [*ENGLISH, *NUMBERS, *CODE, *SHAKESPEARE, *NAMES]

GERMAN = """Die Schlacht von Stalingrad begann im August 1942.
Wer führte die 6. Armee?
Das ist gut.
Er war General.
Es war Paulus.
Der Krieg endete 1945.
Ja, das stimmt.
Ich weiß nicht.
Der Zweite Weltkrieg
Generalfeldmarschall Paulus befehligte die Armee.
nicht wahr
im Jahr 1944
Guten Morgen, Herr General.
Die Stadt wurde von der Armee eingeschlossen und lange belagert.
Warum zogen sich die Truppen zurück?
Nein, es war Rommel.
Das Brot wurde knapp.
Sie fuhren über das Eis.
Weil die Bahnen unterbrochen waren.
Rommel und Paulus""".splitlines()
OTHERS = """La bataille commença en août.
Je ne sais pas.
Oui, c'est vrai.
La guerra terminó en mayo de 1945.
No sé quién era el general.
Il generale non sapeva che cosa fare.
De oorlog was nog niet voorbij.""".splitlines()
CHINESE = ["斯大林格勒战役", "是的。", "保卢斯指挥了第六集团军。", "答案是一九四二年"]
ONE_HANZI = ["The 第 Army surrendered in February.", "Paulus commanded it 和 Rommel did not.",
             "It was 是 in 1943.", "The answer is Zhukov。 好"]  # fmt: skip
KATAKANA = [
    "スターリングラード",
    "The パウルス Army surrendered.",
    "ロンメル",
    "It was ｶﾀｶﾅ there.",
]
FOREIGN = [*GERMAN, *OTHERS, *CHINESE, *ONE_HANZI, *KATAKANA]

REFUSED = ["I'm sorry, but I cannot answer that.", "As an AI language model, I do not know.",
           "I cannot provide an answer.", "My knowledge cutoff is 2023."]  # fmt: skip
META = ["According to the passage, Zhukov did it.", "Based on the given text, it is 1942.",
        "Here is a question about the siege: who?", "Sure! Zhukov took over.",
        "Question: who was it?", "The snippet says so.", "```json"]  # fmt: skip
