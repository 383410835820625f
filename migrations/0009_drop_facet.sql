-- Read by no release since the indexes by priority and by channel. Changes the catalogue alone, in an instant.
alter table cases drop column facet;
