"""Questions for calculator intent detection: pure computations, and other questions."""

#: Each with its result, as `Fraction` reads it; None: answered with why there is no result; "≈x": begins with x.
COMPUTATIONS: dict[str, str | None] = {
    # The classic failure, in many words.
    "What is 40366 / 439?": "40366/439",
    "What is 40366/439?": "40366/439",
    "what is 40366 divided by 439": "40366/439",
    "What's 40,366 ÷ 439?": "40366/439",
    "Calculate 40366/439.": "40366/439",
    "Please compute 40366 / 439": "40366/439",
    "How much is 40366 divided by 439?": "40366/439",
    "Can you tell me what 40366 / 439 is?": "40366/439",
    "40366/439 =": "40366/439",
    "40366 / 439 = ?": "40366/439",
    "What does 40366 / 439 equal?": "40366/439",
    "What is the result of 40366 / 439?": "40366/439",
    "Hello! Could you please calculate 40366 / 439?": "40366/439",
    "What is 40366 / 439? Answer with just the number.": "40366/439",
    "divide 40366 by 439": "40366/439",
    "What is the quotient of 40366 and 439?": "40366/439",
    # Sums and differences.
    "2+2": "4",
    "2 + 2": "4",
    "What's 2+2?": "4",
    "1+1=?": "2",
    "What is 17 + 25?": "42",
    "what is 123 plus 456": "579",
    "What is the sum of 12 and 30?": "42",
    "What is the sum of 3, 5 and 7?": "15",
    "Add 3 and 5": "8",
    "add 3 to 5": "8",
    "What is 1000 - 1?": "999",
    "100 - 37": "63",
    "what is 50 minus 8": "42",
    "subtract 3 from 10": "7",
    "What is the difference between 10 and 4?": "6",
    "0.1 + 0.2": "3/10",
    "What is 1/2 + 1/3?": "5/6",
    "What is -5 + 3?": "-2",
    "1,000,000 + 1": "1000001",
    "What is 3.75 − 1.5?": "9/4",
    "5 + 7 - 2 =": "10",
    # Products.
    "7 * 8": "56",
    "7 × 8": "56",
    "7 x 8": "56",
    "What is 12 x 12?": "144",
    "what is 347 times 29": "10063",
    "What is seven times eight?": "56",
    "multiply 6 by 7": "42",
    "What is the product of 6 and 7?": "42",
    "What is 123456789 * 987654321?": "121932631112635269",
    "12.5 × 4": "50",
    "3 multiplied by 4": "12",
    "what's twice 21?": "42",
    "2.5*4": "10",
    "What is 2*3*4?": "24",
    # Quotients, remainders, fractions.
    "100 ÷ 7": "100/7",
    "What is 144 / 12?": "12",
    "what is 9 divided by 11": "9/11",
    "What is 9 / 11?": "9/11",
    "Calculate 9/11": "9/11",
    "9/11 =": "9/11",
    "Compute 24/7": "24/7",
    "22 divided by 7": "22/7",
    "What is half of 50?": "25",
    "What is a third of 99?": "33",
    "two thirds of 90": "60",
    "three quarters of 100": "75",
    "3/4 of 200": "150",
    "17 mod 5": "2",
    "What is the remainder of 17 divided by 5?": "2",
    "What is 10 / 3 to 2 decimal places?": "333/100",
    "22/7 rounded to 3 decimals": "3143/1000",
    "1000000/3": "1000000/3",
    # Percentages.
    "15% of 80": "12",
    "What is 15% of 80?": "12",
    "what is 15 percent of 80": "12",
    "How much is 7.5% of 1,200?": "90",
    "20% off 50": "40",
    "20 % off 50": "40",
    "What is 25 percent off 80?": "60",
    "What percent of 80 is 20?": "25",
    "20 is what percent of 80?": "25",
    "Calculate 12% of 350": "42",
    "50 increased by 10%": "55",
    "increase 50 by 10%": "55",
    "reduce 80 by 25%": "60",
    "200 plus 10%": "220",
    "150% of 40": "60",
    # Powers and roots.
    "2^10": "1024",
    "2**10": "1024",
    "What is 2 to the power of 10?": "1024",
    "2 to the 10th power": "1024",
    "2 raised to the power of 10": "1024",
    "What is 5 squared?": "25",
    "What is 12²?": "144",
    "5 cubed": "125",
    "3^-2": "1/9",
    "What is the square root of 144?": "12",
    "square root of 144": "12",
    "sqrt(144)": "12",
    "√144": "12",
    "What is √2?": "≈1.4142135623731",
    "What is the square root of 2?": "≈1.4142135623731",
    "cube root of 27": "3",
    "What is the 4th root of 16?": "2",
    "What is the square of 13?": "169",
    "3 plus the square root of 16": "7",
    "2^0.5": "≈1.4142135623731",
    # Several operations.
    "(3 + 4) * 5": "35",
    "What is 2 + 3 * 4?": "14",
    "What is (12 + 8) / (7 - 2)?": "4",
    "3 plus 4 times 5": "23",
    "What is 2 * (3 + (4 - 1)) ^ 2?": "72",
    "Evaluate 18 / 3 * 2": "12",
    "solve 5 * 6 + 7": "37",
    "what is 10 - 4 - 3?": "3",
    # Numbers in words, lists, functions.
    "one plus one": "2",
    "What is twenty-one divided by three?": "7",
    "a hundred divided by four": "25",
    "What is 2 million times 3?": "6000000",
    "nine hundred and ninety-nine plus one": "1000",
    "What is the average of 3, 4 and 8?": "5",
    "mean of 2 and 4": "3",
    "max(3, 9, 4)": "9",
    "abs(-3)": "3",
    "What is 5!?": "120",
    "factorial of 5": "120",
    "round(10/4)": "2",
    "What is $30 + $12?": "42",
    # Asked in other ways.
    "What number is 3 + 4?": "7",
    "What equals 5 + 5?": "10",
    "What do you get if you multiply 6 by 9?": "54",
    "I need to know what 34 * 3 is": "102",
    "What is 12 * 12 please?": "144",
    "What would 7 times 6 be?": "42",
    "What is -7 * -8?": "56",
    "13 x 17 =": "221",
    "What is 1.5 million divided by 3?": "500000",
    "What is 81 minus 18": "63",
    "What is 6 factorial": "720",
    # Without a result: answered, too.
    "What is 5 divided by 0?": None,
    "1/0 =": None,
    "0 / 0 = ?": None,
    "what is 10 % 0": None,
    "what is the square root of -1?": None,
    "What is 9^9^9?": None,
    "Calculate 10^100000": None,
    "sqrt(-4)": None,
}

#: What only looks like a computation, or asks for more than one.
NOT_COMPUTATIONS = """
What happened on 9/11?
What is 9/11?
9/11
What was 9/11 about?
Is 9/11 a prime number?
Python 3.11
What is Python 3.11?
What's new in Python 3.12?
2024-05-01
What is 2024-05-01?
05/01/2024
1/2/2024
What happened in 1914-1918?
1914-1918
1914–1918
What is 1914 - 1918?
2019 - 2023
call 555-1234
555-1234
Who has the number 555-1234?
1-800-555-1234
What is 1-800-555-1234?
+1 555 123 4567
GPT-4 - 2023
24/7 support
24/7
What is 24/7?
What does 24/7 mean?
1/2 cup of sugar
How many grams are 1/2 cup of sugar?
What is 1/2 cup of sugar in grams?
7-11
What is 7-11?
What is a 7-Eleven?
50/50
What is 50/50?
What is 20/20 vision?
20/20
4x4
What is 4x4?
What is a 4x4?
1920x1080
What is 1920x1080?
16:9
What is 3.14?
What is 42?
42
What is the answer to life, the universe and everything?
100%
What is 100%?
What is 10%?
5 + apples
What is 2 + x?
Solve 2x + 3 = 7
solve x^2 = 4
If I have 3 apples and eat 2, how many are left?
A train travels 60 km in 2 hours. What is its speed?
What is 3 - 5 business days?
10-20
10 - 20
What is 10-4?
10-4
What is C++ 11?
C++17
ISO 8601
What is ISO 9001?
192.168.0.1
What is 192.168.0.1/24?
10.0.0.0/8
What is 127.0.0.1?
Section 4.2.1
chapter 3 - 5
pages 10-20
What are pages 10-20 about?
Room 12-34
version 1.2.3
What is 802.11?
What is 802.11 - 2016?
H2O
What is CO2 + H2O?
COVID-19
F-16
What is an F-16?
What is the Boeing 747-400?
747-400
What is RTX 4090 / 3090?
AC/DC
What is the 80/20 rule?
80/20
What is a 401(k)?
What is 401(k)?
Who won the 2018/19 season?
2018/19
What is 2018/19?
What is 2023/2024?
120/80
What is 120/80?
120 over 80
What is a blood pressure of 120/80?
What is the score 3-2?
3-2
They won 3 - 2
one on one
one by one
two by two
What is one of two?
How many sides does a hexagon have?
What is the square root?
What is a square root of a number?
What is the square root of pi?
What is the square root of 16 plus 9?
What is the square root of 16 times 4?
minus 3 squared
What is 200 + 10%?
100 - 20%
percent of 80
What is pi to 10 decimal places?
What is pi * 2?
What is the sum of all numbers from 1 to 100?
What is the sum of the first 100 primes?
What is the difference between 4G and 5G?
What is the difference between 32-bit and 64-bit?
What is the product of this reaction?
What is the average of the class?
What is half of the population of France?
What is 15% of the population of France?
What is 5 km in miles?
5 km + 3 miles
What is 100 USD in EUR?
What is 20°C in Fahrenheit?
How much is 3 kg?
How old is someone born in 1990?
Why is 2 + 2 = 4?
Prove that 1 + 1 = 2
Explain why 5 / 0 is undefined
Is 2 + 2 equal to 5?
Is 17 prime?
Does 0.1 + 0.2 equal 0.3 in Python?
What does 2 + 2 print in JavaScript?
Write a function that computes 2 + 2
print(2 + 2)
What is 2 + 2 and who is the president?
What is 2 + 2? And what is the capital of France?
What is 1+1, explain step by step
What is 3 + 4 in binary?
0x10 + 0x20
1e5
1 2 3
1, 2, 3
3, 4 and 5
What comes after 1, 2, 4, 8?
1 + 2 + ... + 100
1 + 1 = 3?
12:30 - 14:00
What is 12:30 + 2 hours?
5!
Top 5!
Great, 10/10!
10/10
I rate it 8/10
What is 8/10?
$100
What is $100?
#1
Formula 1
Apollo 11
What is Apollo 11?
Area 51
What is Windows 3.1?
3D
2D/3D
What is 1:1?
12/25
What is 12/25?
Who was Henry 8?
What is 3-2-1?
5-4-3-2-1
What is 5-4-3-2-1?
What is 1984?
Is it 5 - 3?
What is -5?
(555) 123-4567
What is (555) 123-4567?
978-3-16-148410-0
What is 978-3-16-148410-0?
1.2.3.4
12-34-56
100-200
What is 100-200?
24 / 7
Double 07
What is 1939 - 45?
What is 2020 - 21?
How do you calculate 15% of 60?
What is 5G?
How do I get 2 to work?
Where is 221B Baker Street?
What is 3M?
Who sang 99 Problems?
What is 9-1-1?
What is 911?
What is 360/180 camera?
15% of Americans
What is 1 in 5?
What is 3 for 2?
Buy 2 get 1
2 for 1
4-4-2
What is 4-4-2?
What is 4-2-3-1 formation?
1-0
What is a 5-4 decision?
8-bit
MP3/MP4
What is 5/4 time?
3/4 time
What is 6/8?
What is a 2/10 net 30?
UTC+2
What is UTC - 5?
GMT+1
What is SHA-256?
What is 10 Downing Street?
Route 66
Catch-22
What is catch 22?
8 x 10 photo
What is a 10-K?
What is 2 + 2 in Roman numerals?
Who is 50 Cent?
What is 2,4-D?
What is 1,2-dichloroethane?
What is 1-2-3 contact?
1/4/2020
What is K-12?
What is Web 2.0?
What is 2001: A Space Odyssey?
What is 21 + ?
What is 3 times a day?
twice a day
take 2 x 500 mg
500 mg / 5 ml
What is 9 to 5?
9-5
What is 60 / 40 portfolio?
What is 70/30?
What is 5*?
*67
#31#
What is *#06#?
What is 5 of hearts?
What is 3 by 5?
What is the square of Paris?
cube of ice
What is one plus?
OnePlus 12
What is Google Plus?
Disney+
What is + 1?
What is C-3PO?
R2-D2
What is 7 up?
3 minus
What is Sum 41?
Blink-182
Maroon 5
What is 3 Doors Down?
What is 2 x 4 lumber?
What is a 9 mm?
0-60 time
What is 0-60?
62 - 64
What is 18-24?
18-24 year olds
What is Article 5?
World War 2
What is ww2 - 1945?
1939 - 1945
What is 1939-45?
What is 2010/11?
555 - 1234
What is 867-5309?
what is 1e10
What is 3+?
rated 18+
What is 2^n?
What is half life 2?
""".strip().splitlines()

#: Written after the rules were done, and never used to mend them.
FRESH_COMPUTATIONS = """
what is 14 times 3
68 + 79
What is 2.4 / 0.6?
how much is 60% of 90?
12 squared
what is 1/4 + 3/8
what's 500 - 125?
How much is nineteen plus eleven?
what is the cube root of 125
find the sum of 14 and 28
7 * (8 - 3)
multiply 12 by 11
What is 45% off 200?
What is 99 divided by 9?
please solve 15 + 6 * 2
hey, what's 13 times 14?
calculate: 5 + 9
what's the difference between 100 and 58
sqrt 49
3^4
What is 360 divided by 12?
eleven times eleven
What is the average of 10 and 20?
25*25
2.2+2.2
What is 10% of 10?
6 plus 6 equals
what is 8 cubed?
give me 3 * 3
the product of 9 and 9
what is a quarter of 60
what is minus 4 plus 9
14/2=
What is (4 + 6) x 3?
1,250 / 5
Could you compute 32 * 4?
What's 0.5 * 0.5
what is 7 to the power of 3
999 * 999
what is 40 + 2?
""".strip().splitlines()

FRESH_OTHERS = """
What is a 5K?
How tall is 5'9?
5'9"
What is 3:45?
What is 1080p?
iPhone 15
What is iOS 17.2?
What is 2Pac?
What is a 3-point line?
What is 4-H?
What is 3/16 inch?
3/16"
M8 x 40
M8x1.25
205/55 R16
205/55
What is 205/55?
What is 6-7?
6-7
What is 13-17?
Psalm 23:4
John 3:16
What is John 3:16?
Acts 2
Isaiah 40:31
What is C4?
What is 4chan?
What is B-52?
What is U2?
area code 212
212-555-0100
What is 212-555-0100?
What is $5 a day?
5%
What is 3.5%?
£5
What is 1st + 2nd?
What is the 4th of July?
What is 1-1?
1-1
2-1-0
Is 4/20 a holiday?
What is 4/20?
4/20
What is 420?
What is 5-HT?
What is 3x?
10x
What is a 10x engineer?
3 x 3 basketball
What is +44?
+44 20 7946 0958
What is 5e?
What is 3 sigma?
What is 3σ?
What is 6 sigma?
ratio of 3 to 4
3 to 4
What is 3 to 4?
two thirds majority
What is two thirds?
What is half?
What is a third?
What is seven?
a hundred
one hundred and one dalmatians
twenty twenty
nineteen eighty-four
What is nineteen eighty-four?
What is fifty fifty?
What is one two three?
seven eleven
What is nine eleven?
forty two
What is the sum of us?
What is the mean?
What is the mean of this sentence?
What is max?
abs
What is abs(x)?
What is root?
square root
What is percent?
What is minus one?
minus 40
What is 5 minutes?
-40 degrees
-40
What is (5)?
((5))
What is 2.0?
12.04.2024
12. 4. 2024
2024.05.01
What is 2024/05?
Q3 2024
FY2024-25
What is FY 2024/25?
2024-W05
What is E=mc^2?
a^2 + b^2 = c^2
What is 1 + i?
What is x / 0?
What is infinity - 1?
0/1
What is 0/1?
01/02
What is 1.0-2.0?
v1.0-2
""".strip().splitlines()
