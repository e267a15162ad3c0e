"""Questions that only look like a computation, or ask for more than one: the calculator leaves them to the model."""

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
