-- Which of the servers that share the file is answering: the number of its slot
-- (slots.py), -1 for nobody. So a server that starts marks what dead servers
-- left unfinished, and leaves alone what others are working on.
ALTER TABLE messages ADD COLUMN owner INTEGER NOT NULL DEFAULT -1;
