"""Questions that are pure computations, for calculator intent detection."""

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
    # Other phrasings.
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
