package swingstore

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strconv"
)

// Snapshot is a heap snapshot that a vat's worker wrote.
type Snapshot struct {
	Vat        string
	Position   int64  // of the item save-snapshot; the next span starts at the one after
	Hash       string // SHA-256 of the snapshot, uncompressed
	Size       int64  // uncompressed; 0 if it is not known
	Compressed int64  // bytes; 0 if it is not known
	InUse      bool   // the vat's worker is started from it
	Present    bool   // the store has it, and not only its hash
	Engine     string // version that wrote it; empty: the legacy version
}

func (s Snapshot) String() string { return fmt.Sprintf("heap snapshot %d of %s", s.Position, s.Vat) }

const snapshotColumns = "SELECT snapPos, inUse, hash, coalesce(uncompressedSize, 0), coalesce(compressedSize, 0), typeof(compressedSnapshot) <> 'null' FROM snapshots WHERE vatID = ?"

func scanSnapshot(scan func(...any) error, s *Snapshot) error {
	var inUse sql.NullInt64
	err := scan(&s.Position, &inUse, &s.Hash, &s.Size, &s.Compressed, &s.Present)
	s.InUse = inUse.Valid
	return err
}

// Snapshots returns what is known of the heap snapshots of a vat, oldest first.
func (r *Reader) Snapshots(ctx context.Context, vat string) ([]Snapshot, error) {
	rows, err := r.query(ctx, snapshotColumns+" ORDER BY snapPos", vat)
	if err != nil {
		return nil, r.wrap(err, "listing the heap snapshots of %s", vat)
	}
	defer rows.Close()
	var list []Snapshot
	for rows.Next() {
		s := Snapshot{Vat: vat}
		if err := scanSnapshot(rows.Scan, &s); err != nil {
			return nil, r.wrap(err, "listing the heap snapshots of %s", vat)
		}
		list = append(list, s)
	}
	if err := rows.Err(); err != nil {
		return nil, r.wrap(err, "listing the heap snapshots of %s", vat)
	}
	rows.Close()
	engine, err := r.enginesOf(ctx, vat)
	if err != nil {
		return nil, err
	}
	for i := range list {
		list[i].Engine = engine(list[i].Position)
	}
	return list, nil
}

// SnapshotInUse returns the heap snapshot that a vat's worker is started from. It is ErrNotFound if it starts from bundles.
func (r *Reader) SnapshotInUse(ctx context.Context, vat string) (Snapshot, error) {
	s := Snapshot{Vat: vat}
	if err := scanSnapshot(r.row(ctx, snapshotColumns+" AND inUse = 1", vat).Scan, &s); err != nil {
		return s, r.wrap(err, "reading the heap snapshot of %s", vat)
	}
	var err error
	s.Engine, err = r.engineAt(ctx, vat, s.Position)
	return s, err
}

// OpenSnapshot returns a heap snapshot, uncompressed. The reader gives a *DamagedError in place of the end if it has not the hash and
// size that the store says. The error is ErrPruned if the store no longer has it.
func (r *Reader) OpenSnapshot(ctx context.Context, s Snapshot) (io.ReadCloser, error) {
	var blob []byte
	if err := r.row(ctx, "SELECT compressedSnapshot FROM snapshots WHERE vatID = ? AND snapPos = ?", s.Vat, s.Position).Scan(&blob); err != nil {
		return nil, r.wrap(err, "reading %s", s)
	}
	if blob == nil {
		return nil, r.wrap(ErrPruned, "reading %s", s)
	}
	z, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		return nil, r.damaged(s.String(), "gzip", err.Error())
	}
	return &snapshotReader{r: r, s: s, z: z, hash: sha256.New()}, nil
}

type snapshotReader struct {
	r    *Reader
	s    Snapshot
	z    *gzip.Reader
	hash hash.Hash
	size int64
	err  error
}

func (sr *snapshotReader) Read(p []byte) (int, error) {
	if sr.err != nil {
		return 0, sr.err
	}
	n, err := sr.z.Read(p)
	sr.hash.Write(p[:n])
	sr.size += int64(n)
	if err == nil {
		return n, nil
	}
	if sr.err = err; err != io.EOF {
		sr.err = sr.r.damaged(sr.s.String(), "gzip", err.Error())
	} else if found := hex.EncodeToString(sr.hash.Sum(nil)); found != sr.s.Hash {
		sr.err = sr.r.damaged(sr.s.String(), "SHA-256 "+sr.s.Hash, found)
	} else if sr.s.Size != 0 && sr.size != sr.s.Size {
		sr.err = sr.r.damaged(sr.s.String(), fmt.Sprintf("%d bytes", sr.s.Size), strconv.FormatInt(sr.size, 10))
	}
	return n, sr.err
}

func (sr *snapshotReader) Close() error { return sr.z.Close() }
