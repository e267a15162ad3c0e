"""Questions for clock intent detection: pure questions of date and time, and other questions."""

#: With the answer on Wednesday, 25 November 2026, 03:40 UTC.
CLOCK: dict[str, str] = {
    "What day is it?": "Today is Wednesday, 25 November 2026.",
    "What day is it today?": "Today is Wednesday, 25 November 2026.",
    "what day of the week is it?": "Today is Wednesday, 25 November 2026.",
    "What weekday is today?": "Today is Wednesday, 25 November 2026.",
    "What day is today?": "Today is Wednesday, 25 November 2026.",
    "What is today's date?": "Today is Wednesday, 25 November 2026.",
    "what's today's date": "Today is Wednesday, 25 November 2026.",
    "What’s the date today?": "Today is Wednesday, 25 November 2026.",
    "What is the date?": "Today is Wednesday, 25 November 2026.",
    "What is the current date?": "Today is Wednesday, 25 November 2026.",
    "Tell me today's date": "Today is Wednesday, 25 November 2026.",
    "today's date": "Today is Wednesday, 25 November 2026.",
    "What date is it?": "Today is Wednesday, 25 November 2026.",
    "Hi, what date is it today, please?": "Today is Wednesday, 25 November 2026.",
    "Do you know what day it is?": "Today is Wednesday, 25 November 2026.",
    "What time is it?": "It is 03:40 (UTC) on Wednesday, 25 November 2026.",
    "what time is it now": "It is 03:40 (UTC) on Wednesday, 25 November 2026.",
    "What's the time?": "It is 03:40 (UTC) on Wednesday, 25 November 2026.",
    "What is the current time?": "It is 03:40 (UTC) on Wednesday, 25 November 2026.",
    "Can you tell me the time please?": "It is 03:40 (UTC) on Wednesday, 25 November 2026.",
    "Could you tell me what time it is?": "It is 03:40 (UTC) on Wednesday, 25 November 2026.",
    "What time is it in Tokyo?": "It is 12:40 in Tokyo (JST) on Wednesday, 25 November 2026.",
    "what time is it in New York right now?": "It is 22:40 in New York (EST) on Tuesday, 24 November 2026.",
    "What time is it now in London?": "It is 03:40 in London (GMT) on Wednesday, 25 November 2026.",
    "What year is it?": "It is 2026.",
    "what year is it now?": "It is 2026.",
    "What is the current year?": "It is 2026.",
    "What month is it?": "It is November 2026.",
    "What day is tomorrow?": "Tomorrow is Thursday, 26 November 2026.",
    "What is tomorrow's date?": "Tomorrow is Thursday, 26 November 2026.",
    "What day was yesterday?": "Yesterday was Tuesday, 24 November 2026.",
    "How many days until 25 December 2026?": "From today, 25 November 2026, until 25 December 2026 it is 30 days.",
    "how many days until Christmas?": "From today, 25 November 2026, until 25 December 2026 it is 30 days.",
    "How many days are there until December 25?": "From today, 25 November 2026, until 25 December 2026 it is 30 days.",
    "how many days is it until 2026-11-26": "From today, 25 November 2026, until 26 November 2026 it is 1 day.",
    "How many days left until 1 January?": "From today, 25 November 2026, until 1 January 2027 it is 37 days.",
    "How many days until 29 February?": "From today, 25 November 2026, until 29 February 2028 it is 461 days.",
    "days until New Year's Eve": "From today, 25 November 2026, until 31 December 2026 it is 36 days.",
    "How many days since 1 January 2026?": "Since 1 January 2026 328 days have passed.",
    "how many days have passed since July 4th, 1976?": "Since 4 July 1976 18406 days have passed.",
    "How many days between 1 January 2026 and 1 March 2026?": "From 1 January 2026 to 1 March 2026 it is 59 days.",
    "How many days are there between January 1, 2024 and March 1, 2024?": "From 1 January 2024 to 1 March 2024 it is 60 days.",
    "how many days from 2026-01-01 to 2026-12-31": "From 1 January 2026 to 31 December 2026 it is 364 days.",
    "What is the number of days between 3 March 2020 and 4 March 2020?": "From 3 March 2020 to 4 March 2020 it is 1 day.",
    "What day of the week was 4 July 1976?": "4 July 1976 was a Sunday.",
    "what day of the week is 25 December 2026": "25 December 2026 is a Friday.",
    "What day was July 4, 1976?": "4 July 1976 was a Sunday.",
    "What day of the week was it on 9 November 1989?": "9 November 1989 was a Thursday.",
    "On what day of the week did 9 November 1989 fall?": "9 November 1989 was a Thursday.",
    "What weekday was the 20th of July 1969?": "20 July 1969 was a Sunday.",
    "What day will 1 January 2030 be?": "1 January 2030 is a Tuesday.",
    "What day is Christmas?": "25 December 2026 is a Friday.",
    "What day does Christmas fall on in 2027?": "25 December 2027 is a Saturday.",
    "Which day of the week is 2027-01-01?": "1 January 2027 is a Friday.",
    "What was the day of the week on 15 Sept 2008?": "15 September 2008 was a Monday.",
    "What date is it in 10 days?": "That is Saturday, 5 December 2026.",
    "what day will it be in 3 weeks": "That is Wednesday, 16 December 2026.",
    "What date will it be 100 days from now?": "That is Friday, 5 March 2027.",
    "What date was it 30 days ago?": "That was Monday, 26 October 2026.",
    "What day of the week is 31 February 2026?": "There is no 31 February 2026.",
    "How many days until 30 February 2027?": "There is no 30 February 2027.",
}

NOT_CLOCK = """
What day is the meeting?
What day is the best day to travel?
What day is it in the story?
What day is garbage day?
What time is the meeting?
What time is it for you to go?
What time does the shop open?
What time is it on Mars?
What time is it in San Francisco's best restaurant?
What time is it when the sun sets?
What time is love?
What is time?
What is the time complexity of quicksort?
What is the time signature of this song?
What is the date of the battle of Hastings?
What is the date format in ISO 8601?
What's the date of birth of Alan Turing?
What date was the treaty signed?
What is a date?
What is a leap year?
What year was Python released?
What year is the book set in?
What year is it set in?
What year is it in the film?
What year did the war end?
What month is the hottest in Spain?
What month was he born?
How many days are in a year?
How many days are in February?
How many days in a week?
How many days does it take to get to Mars?
How many days until I get my order?
How many days until the next election?
How many days until my birthday?
How many days until Monday?
How many days between Monday and Friday?
How many days between the two world wars?
How many days since the accident?
How many days between 1 and 5?
How long until the sun dies?
How long is it until dinner?
How long until the train arrives?
how many weeks are there in a year
What day of the week is best for posting?
What day of the week was JFK shot?
What day of the week was Alan Turing born?
What day of the week is named after Thor?
What day is Independence Day celebrated in France?
What day was the moon landing?
What day did the war begin?
What day is after Monday?
What is the day after tomorrow called?
What is today's weather?
What is today's news?
What is today's temperature in Paris?
What is tomorrow's weather?
Today's special
today
tomorrow
date
time
What happened on 4 July 1976?
What happened today in history?
Who was born on 4 July 1976?
4 July 1976
25 December 2026
2026-12-25
When is Christmas?
Why is Christmas on 25 December?
When is Easter?
Is it Monday?
Is today a holiday?
What is 12/25/2026?
What day is 12/11/10?
What day is 3/4/2025?
What is the current president?
What is the current version of Python?
What is the current time complexity?
What is the current year's budget?
the time machine
Tell me about the time you failed
Tell me about today
Write a poem about the date
What day is it? And who is the president?
What time is it and what's the weather?
What is the date and the capital of France?
What date should I plant tomatoes?
How do I get today's date in Python?
How do I print the current time in C?
What does it mean to ask what day it is?
What year is this wine from?
What day should we meet?
day of the week
How many days has it rained since 1 May?
What day is 40 days after Easter?
What day of the week is 5?
What time zone is Berlin in?
What is the time difference between London and Tokyo?
What time is it in Narnia?
What time will it be in 2 hours in Gotham?
days until
How many days until then?
How many days until May?
How many days are left in the year?
What is the first day of spring?
What is yesterday's news?
What was yesterday's score?
What year is 2026 in the Chinese calendar?
What is 25 December 2026?
What day is it on Venus?
Which year is best?
Which day is it due?
What is the year of the rabbit?
What time is checkout?
What is the date on the letter?
How many days is 48 hours?
How many days old is the earth?
When was 4 July 1976?
What is the day of judgement?
What is the month with 28 days?
What is the latest date?
How many days from London to New York?
How many days until 25?
How many days between A and B?
""".strip().splitlines()

#: Written after the rules were done, and never used to mend them.
FRESH_CLOCK = """
what day is today please
Whats the date
tell me the time
what is the time in Paris?
How many days until January 1 2027?
how many days till Halloween
what day of the week was January 1, 2000?
What weekday is 3 May 2027?
what is the date tomorrow?
current date
what's the year
which month is it
How many days between 2020-01-01 and 2021-01-01
what time is it in Sydney now
what's the day today
how many days are left until Christmas
how many days has it been since 11 September 2001?
date today
What day of the week will Christmas be in 2030?
what is today
""".strip().splitlines()

FRESH_NOT_CLOCK = """
What day is payday?
what time is dinner
What's the date of Easter 2027?
What is the time on the moon?
What year did Christmas start?
How many days until summer?
How many days since we met?
What is the day of the dead?
What time is it in the movie Inception?
What day is D-Day?
what's the time limit
what date is best
how many days between periods
What is today's headline?
what day is it going to rain
What time is it where you are?
What day was it when Kennedy died?
how many days to lose 10 pounds
How long until I am 30?
What is the date of manufacture?
what is the year of the dragon
What day of the week do banks close?
the date
how many days till payday
what is the current affairs
""".strip().splitlines()
