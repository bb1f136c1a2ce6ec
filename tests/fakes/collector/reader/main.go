// Reads from ClickHouse as Grafana's data source does: clickhouse-go, and a context whose deadline
// is the data source's queryTimeout (from which the driver makes max_execution_time).
//
// usage: reader HOST:PORT USER TIMEOUT_S < queries, one a line; the password is in
// GAIA_CLICKHOUSE_PASSWORD. Prints one line of JSON a query: {"columns", "rows"} or {"error"}.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"reflect"
	"strconv"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

type answer struct {
	Columns []string `json:"columns,omitempty"`
	Rows    [][]any  `json:"rows"`
	Error   string   `json:"error,omitempty"`
}

func main() {
	seconds, err := strconv.Atoi(os.Args[3])
	if err != nil {
		panic(err)
	}
	database := clickhouse.OpenDB(&clickhouse.Options{
		Addr:     []string{os.Args[1]},
		Protocol: clickhouse.HTTP,
		Auth: clickhouse.Auth{
			Username: os.Args[2],
			Password: os.Getenv("GAIA_CLICKHOUSE_PASSWORD"),
		},
	})
	defer database.Close()
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(seconds)*time.Second)
		result := answer{Rows: [][]any{}}
		rows, err := database.QueryContext(ctx, lines.Text())
		if err != nil {
			result.Error = err.Error()
		} else {
			result.Columns, _ = rows.Columns()
			types, _ := rows.ColumnTypes()
			for rows.Next() {
				into := make([]any, len(types))
				for i, kind := range types {
					into[i] = reflect.New(kind.ScanType()).Interface()
				}
				if err := rows.Scan(into...); err != nil {
					result.Error = err.Error()
					break
				}
				for i := range into {
					into[i] = plain(reflect.ValueOf(into[i]).Elem().Interface())
				}
				result.Rows = append(result.Rows, into)
			}
			if err := rows.Err(); err != nil && result.Error == "" {
				result.Error = err.Error()
			}
			rows.Close()
		}
		cancel()
		text, err := json.Marshal(result)
		if err != nil {
			panic(err)
		}
		fmt.Println(string(text))
	}
}

// JSON has no NaN.
func plain(value any) any {
	if number, ok := value.(float64); ok && (math.IsNaN(number) || math.IsInf(number, 0)) {
		return fmt.Sprint(number)
	}
	return value
}
