BEGIN TRANSACTION;
CREATE TABLE accounts (
	path VARCHAR NOT NULL, 
	epsilon FLOAT NOT NULL, 
	delta FLOAT NOT NULL, 
	method VARCHAR NOT NULL, 
	period_epsilon FLOAT, 
	period_seconds FLOAT, 
	PRIMARY KEY (path)
);
INSERT INTO "accounts" VALUES('fed',8.0,1.0e-06,'pld',4.0,10000000000.0);
INSERT INTO "accounts" VALUES('fed/north',2.0,1.0e-05,'pld',NULL,NULL);
CREATE TABLE charges (
	id INTEGER NOT NULL, 
	release INTEGER NOT NULL, 
	path VARCHAR NOT NULL, 
	run VARCHAR NOT NULL, 
	round INTEGER NOT NULL, 
	event VARCHAR NOT NULL, 
	status VARCHAR NOT NULL, 
	time FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "charges" VALUES(1,1,'fed','run-1',1,'[{"noise_multiplier": 10.0, "sampling_rate": 0.5, "count": 1, "slack": 0.0, "relation": "add or remove one"}]','committed',1000000001.0);
INSERT INTO "charges" VALUES(2,1,'fed/north','run-1',1,'[{"noise_multiplier": 10.0, "sampling_rate": 0.5, "count": 1, "slack": 0.0, "relation": "add or remove one"}]','committed',1000000001.0);
INSERT INTO "charges" VALUES(5,1,'fed/south/2','run-1',1,'[{"noise_multiplier": 10.0, "sampling_rate": 0.5, "count": 1, "slack": 0.0, "relation": "add or remove one"}]','committed',1000000001.0);
INSERT INTO "charges" VALUES(6,2,'fed','run-1',2,'[{"noise_multiplier": 10.0, "sampling_rate": 0.5, "count": 1, "slack": 0.0, "relation": "add or remove one"}]','committed',1000000002.0);
INSERT INTO "charges" VALUES(7,2,'fed/north','run-1',2,'[{"noise_multiplier": 10.0, "sampling_rate": 0.5, "count": 1, "slack": 0.0, "relation": "add or remove one"}]','committed',1000000002.0);
INSERT INTO "charges" VALUES(10,2,'fed/south/2','run-1',2,'[{"noise_multiplier": 10.0, "sampling_rate": 0.5, "count": 1, "slack": 0.0, "relation": "add or remove one"}]','committed',1000000002.0);
INSERT INTO "charges" VALUES(11,3,'fed','run-1',3,'[{"noise_multiplier": 10.0, "sampling_rate": 0.5, "count": 1, "slack": 0.0, "relation": "add or remove one"}]','reserved',1000000003.0);
INSERT INTO "charges" VALUES(12,3,'fed/north','run-1',3,'[{"noise_multiplier": 10.0, "sampling_rate": 0.5, "count": 1, "slack": 0.0, "relation": "add or remove one"}]','reserved',1000000003.0);
INSERT INTO "charges" VALUES(15,3,'fed/south/2','run-1',3,'[{"noise_multiplier": 10.0, "sampling_rate": 0.5, "count": 1, "slack": 0.0, "relation": "add or remove one"}]','reserved',1000000003.0);
INSERT INTO "charges" VALUES(16,4,'fed','run-2',1,'[{"noise_multiplier": 20.0, "sampling_rate": 1.0, "count": 1, "slack": 0.0, "relation": "add or remove one"}]','cancelled',1000000004.0);
INSERT INTO "charges" VALUES(18,4,'fed/south/2','run-2',1,'[{"noise_multiplier": 20.0, "sampling_rate": 1.0, "count": 1, "slack": 0.0, "relation": "add or remove one"}]','cancelled',1000000004.0);
CREATE INDEX ix_charges_path ON charges (path);
CREATE INDEX ix_charges_release ON charges (release);
COMMIT;
