// Reads a log directory with golang.org/x/mod/sumdb, the code behind Go's checksum database, and prints what it finds.
//
//	verify check VKEY DIRECTORY...   per directory "good SIZE ROOT" or "bad REASON"
//	verify prove VKEY DIRECTORY      per line "i INDEX SIZE" or "c OLD NEW" on stdin: the proof's hashes in base64
//
// Go names tiles with their height and entries "data"; C2SP does neither: tile/8/L/N is tile/L/N here.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type files string

func (files) Height() int                     { return 8 }
func (files) SaveTiles([]tlog.Tile, [][]byte) {}
func (dir files) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range tiles {
		data, err := os.ReadFile(filepath.Join(string(dir), strings.Replace(tile.Path(), "tile/8/", "tile/", 1)))
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
	return all, nil
}

func open(dir, vkey string) (tree tlog.Tree, err error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return tree, err
	}
	raw, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		return tree, err
	}
	opened, err := note.Open(raw, note.VerifierList(verifier))
	if err != nil {
		return tree, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() || lines[3] != "" {
		return tree, fmt.Errorf("checkpoint of another form or log")
	}
	if tree.N, err = strconv.ParseInt(lines[1], 10, 64); err != nil {
		return tree, err
	}
	tree.Hash, err = tlog.ParseHash(lines[2])
	return tree, err
}

func bundle(dir string, n, width int64) ([][]byte, error) {
	tile := tlog.Tile{H: 8, L: -1, N: n, W: int(width)}
	name := strings.Replace(tile.Path(), "tile/8/data/", "tile/entries/", 1)
	raw, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	var entries [][]byte
	for len(raw) > 0 {
		if len(raw) < 2 {
			return nil, fmt.Errorf("%s: cut short", name)
		}
		size := int(binary.BigEndian.Uint16(raw))
		if raw = raw[2:]; len(raw) < size {
			return nil, fmt.Errorf("%s: cut short", name)
		}
		entries, raw = append(entries, raw[:size]), raw[size:]
	}
	if int64(len(entries)) != width {
		return nil, fmt.Errorf("%s: %d entries", name, len(entries))
	}
	return entries, nil
}

func check(dir, vkey string) (tree tlog.Tree, err error) {
	if tree, err = open(dir, vkey); err != nil {
		return tree, err
	}
	reader := tlog.TileHashReader(tree, files(dir))
	if root, err := tlog.TreeHash(tree.N, reader); err != nil || root != tree.Hash {
		return tree, fmt.Errorf("root: %v %v", root, err)
	}
	for start := int64(0); start < tree.N; start += 256 {
		width := tree.N - start
		if width > 256 {
			width = 256
		}
		entries, err := bundle(dir, start/256, width)
		if err != nil {
			return tree, err
		}
		var indexes []int64
		for i := range entries {
			indexes = append(indexes, tlog.StoredHashIndex(0, start+int64(i)))
		}
		hashes, err := reader.ReadHashes(indexes)
		if err != nil {
			return tree, err
		}
		for i, entry := range entries {
			if tlog.RecordHash(entry) != hashes[i] {
				return tree, fmt.Errorf("entry %d", start+int64(i))
			}
		}
	}
	return tree, nil
}

func prove(dir, vkey string) error {
	tree, err := open(dir, vkey)
	if err != nil {
		return err
	}
	reader := tlog.TileHashReader(tree, files(dir))
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var kind string
		var one, two int64
		var proof []tlog.Hash
		if _, err := fmt.Sscan(in.Text(), &kind, &one, &two); err != nil {
			return err
		}
		if kind == "i" {
			proof, err = tlog.ProveRecord(two, one, reader)
		} else {
			proof, err = tlog.ProveTree(two, one, reader)
		}
		if err != nil {
			return err
		}
		var words []string
		for _, hash := range proof {
			words = append(words, base64.StdEncoding.EncodeToString(hash[:]))
		}
		fmt.Println(strings.Join(words, " "))
	}
	return nil
}

func main() {
	if os.Args[1] == "prove" {
		if err := prove(os.Args[3], os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	for _, dir := range os.Args[3:] {
		if tree, err := check(dir, os.Args[2]); err != nil {
			fmt.Println("bad", err)
		} else {
			fmt.Println("good", tree.N, tree.Hash)
		}
	}
}
